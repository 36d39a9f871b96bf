"""`specpipe prepare`: input files into one file of pretokenised samples."""
