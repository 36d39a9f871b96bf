"""A dump on disk or in an object store: opened, read, written."""
