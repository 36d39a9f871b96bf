"""Input files on any store: found, opened, decompressed, read row by row."""
