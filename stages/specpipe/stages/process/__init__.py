"""Processes and devices: end with the parent, stop early, GPU memory, current activity."""
