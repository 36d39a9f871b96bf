"""The formats of DFlash artifacts on disk."""
