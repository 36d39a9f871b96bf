"""The loss mask: which characters and tokens of a conversation the assistant wrote."""
