"""What is written to disk, as types: dumps, samples, checkpoints, metrics, validations, jobs."""
