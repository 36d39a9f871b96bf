"""Objects on any fsspec store: atomic writes, retries, faults, checksums, locks."""
