"""`specpipe train`: from a dump to a run folder, resumable at any moment."""
