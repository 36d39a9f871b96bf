"""`specpipe tune`: a search for settings, resumable; every trial is an ordinary training run."""
