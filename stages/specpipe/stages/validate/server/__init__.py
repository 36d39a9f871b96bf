"""Level `serve` of a server that runs already."""
