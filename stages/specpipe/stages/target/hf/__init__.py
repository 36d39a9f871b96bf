"""The target in transformers: states caught by hooks, text generated."""
