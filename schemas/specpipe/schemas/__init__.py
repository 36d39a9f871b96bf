"""Values and their validation: what the stages agree on. No torch, no I/O."""
