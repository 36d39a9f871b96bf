"""`specpipe validate`: an artifact is sound, is what was trained, works in the engine."""
