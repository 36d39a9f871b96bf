"""`specpipe report`: one page of what a run and its export left."""
