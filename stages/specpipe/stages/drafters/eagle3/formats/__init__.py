"""The formats of EAGLE-3 artifacts on disk."""
