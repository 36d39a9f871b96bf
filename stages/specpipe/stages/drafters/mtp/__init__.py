"""MTP: the layer of the target's own that predicts further tokens, unrolled over draft steps."""
