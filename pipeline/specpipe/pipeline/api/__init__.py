"""`specpipe serve-api`: files and jobs over HTTP."""
