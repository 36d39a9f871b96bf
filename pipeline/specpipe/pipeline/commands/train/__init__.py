"""`specpipe train`: command, flags, figures beside its progress."""
