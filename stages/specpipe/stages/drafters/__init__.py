"""Drafter architectures, one folder each, and what they share."""
