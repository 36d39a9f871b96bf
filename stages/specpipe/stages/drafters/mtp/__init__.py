"""MTP: the target's own layer for further tokens, trained on, and proven by a plain one."""
