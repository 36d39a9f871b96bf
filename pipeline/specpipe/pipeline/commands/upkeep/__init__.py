"""`specpipe verify`, `gc` and `inspect`."""
