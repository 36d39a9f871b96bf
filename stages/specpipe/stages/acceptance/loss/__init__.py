"""Losses and measures of all draft steps, walked in chunks of verifier rows."""
