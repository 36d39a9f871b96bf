"""What a dump is of and which sample is in which shard: written down before the target runs."""
