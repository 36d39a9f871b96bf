"""Several processes of one run: sums, errors, sharded weights."""
