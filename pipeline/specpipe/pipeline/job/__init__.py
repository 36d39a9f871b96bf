"""`specpipe run`: a fine-tuning job, its stages one after the other."""
