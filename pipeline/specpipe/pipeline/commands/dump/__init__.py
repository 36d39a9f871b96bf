"""`specpipe dump`, and the flags that it shares with `plan` and `prepare`."""
