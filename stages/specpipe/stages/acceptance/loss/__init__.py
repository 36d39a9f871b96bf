"""Losses and measures of all heads, walked in chunks of rows; the passes over the vocabulary."""
