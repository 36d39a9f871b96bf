"""`specpipe export`, `convert` and `validate`."""
