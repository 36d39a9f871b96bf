"""The settings and the shape of each drafter architecture, one file each."""
