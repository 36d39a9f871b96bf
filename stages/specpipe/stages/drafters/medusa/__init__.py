"""Medusa: its model, shape, artifact, and the plain second implementation."""
