"""`specpipe dump`: the planned samples through the target into shards."""
