"""Samples of a dump as a drafter takes them: selected, read ahead, packed, on its device."""
