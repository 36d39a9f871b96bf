"""Starting workers: on this machine, on Ray, and which share of the work each has."""
