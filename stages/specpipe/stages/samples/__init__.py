"""Samples of a dump, as a drafter takes them: read ahead, selected, packed, on its device."""
