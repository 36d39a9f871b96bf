"""EAGLE-3: its model, shape, first weights, artifact, and the plain second implementation."""
