"""The target as a transformers model: built, and its parts found by their role."""
