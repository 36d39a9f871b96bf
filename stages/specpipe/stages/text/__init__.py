"""Texts: input files in, checked samples (tokens and loss mask) or prompts out."""
