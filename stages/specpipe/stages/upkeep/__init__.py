"""Care of a dump that is there: verify, gc, inspect."""
