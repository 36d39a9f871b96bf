"""Messages on what a long step is doing now; each replaces the one before.

The text before a colon names the phase; what follows it are figures that change within the phase.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOGGER = logging.getLogger("specpipe.activity")
_LOGGER.propagate = False
_LOGGER.setLevel(logging.WARNING)
_SELDOM_SECONDS = 1.0


def doing(what: str) -> None:
    """Say what this process is doing, in a few words: "starting vLLM"."""
    _LOGGER.info("%s", what)


class Seldom:
    """Reports the activity at most once a second, for loops whose figures change fast."""

    def __init__(self) -> None:
        self._last = 0.0

    def doing(self, what: Callable[[], str]) -> None:
        now = time.monotonic()
        if now - self._last >= _SELDOM_SECONDS and _LOGGER.isEnabledFor(logging.INFO):
            self._last = now
            doing(what())


@contextmanager
def watched(watch: Callable[[str], None]) -> Iterator[None]:
    """Within, `watch` is called with whatever this process says that it is doing."""
    handler = _Watch(watch)
    before = _LOGGER.level
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(before)


class _Watch(logging.Handler):
    def __init__(self, watch: Callable[[str], None]) -> None:
        super().__init__()
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        self._watch(record.getMessage())
