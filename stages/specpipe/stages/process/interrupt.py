"""Commands that are stopped early, by a scheduler's SIGTERM or their time limit: exit code 5."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from specpipe.schemas.errors import UnfinishedError


class _Stop:
    """Interrupts the main thread once: it is then left to put in order what was begun."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._time_is_up = False

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.reason is None:
            told = "asked to stop (SIGTERM)"
            self.reason = "the time limit is reached" if self._time_is_up else told
            raise KeyboardInterrupt

    def on_time(self) -> None:
        self._time_is_up = True
        # What the main thread waits for ends by a signal alone.
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGTERM)


@contextmanager
def stops_early(time_limit: float | None = None) -> Iterator[None]:
    """Interrupt what runs inside, as Ctrl-C does, at SIGTERM or after so many seconds.

    Raises UnfinishedError then. Outside of the main thread, where no signal can be taken, nothing
    is interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _Stop()
    timer = None if time_limit is None else threading.Timer(time_limit, stop.on_time)
    before = signal.signal(signal.SIGTERM, stop.on_signal)
    try:
        if timer is not None:
            timer.daemon = True
            timer.start()
        yield
    except KeyboardInterrupt:
        if stop.reason is None:
            raise
        raise UnfinishedError(f"{stop.reason}; run the same command again to continue") from None
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
        signal.signal(signal.SIGTERM, before)
