"""The target: run for its states in transformers or in vLLM, and proven to be right."""
