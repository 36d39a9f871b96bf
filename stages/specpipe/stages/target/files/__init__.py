"""A target's folder: where it is, its identity, config, tokenizer and end tokens."""
