"""Which samples make which step."""
