"""DFlash: a block of mask tokens behind the last token, filled in one pass."""
