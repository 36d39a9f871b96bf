"""The commands, one file each; those with many flags have a folder."""
