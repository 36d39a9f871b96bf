"""The formats of DSpark artifacts on disk."""
