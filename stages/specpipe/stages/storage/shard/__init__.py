"""One shard: its samples and states, written and read back checked."""
