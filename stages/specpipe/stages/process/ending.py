"""How a process of ours ends."""

import atexit
import gc


def end_without_a_search() -> None:
    """Python looks for garbage several times while it ends: with torch loaded, for a second."""
    atexit.register(gc.freeze)
