"""`specpipe export` and `convert`: from a checkpoint to an artifact that engines load."""
