"""`specpipe plan`: what a dump and its training take, before anything is spent."""
