"""EAGLE-1: its model, artifact, and the plain second implementation."""
