"""The folder of a training run: configuration, metrics, checkpoints, held-out samples."""
