"""The stages and all that they are made of; each stage is a function run(config) -> result."""
