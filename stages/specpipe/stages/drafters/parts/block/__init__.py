"""Drafters that fill a block of mask tokens in one pass."""
