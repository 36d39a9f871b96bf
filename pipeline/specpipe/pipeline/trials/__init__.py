"""Training runs as parts of a larger search: opened, timed, in a folder that can be resumed."""
