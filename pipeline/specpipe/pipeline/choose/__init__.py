"""`specpipe choose`: which architecture suits a dump and an engine; by ordinary runs."""
