"""When a run should stop early: SIGTERM, or its time limit."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopQuestion:
    """Answers whether a run should stop early, and why."""

    def __init__(self, time_limit: float | None, began: float | None = None) -> None:
        """`began`: when the limit began to count, by time.monotonic; None: now."""
        since = time.monotonic() if began is None else began
        self._deadline = None if time_limit is None else since + time_limit
        self._signalled = False

    def signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True

    def of_signal(self) -> str | None:
        """The answer where the time limit does not count."""
        return "asked to stop (SIGTERM)" if self._signalled else None

    def __call__(self) -> str | None:
        if self._signalled:
            return self.of_signal()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "the time limit is reached"
        return None


@contextmanager
def stop_question(time_limit: float | None, began: float | None = None) -> Iterator[StopQuestion]:
    """Turn SIGTERM into a question that the loop asks; only the main thread can.

    A run that was over when it was asked is complete; then whoever heard SIGTERM before hears it.
    """
    question = StopQuestion(time_limit, began)
    if threading.current_thread() is not threading.main_thread():
        yield question
        return
    before = signal.signal(signal.SIGTERM, question.signal)
    try:
        yield question
    finally:
        signal.signal(signal.SIGTERM, before)
    if question.of_signal() and callable(before):
        before(signal.SIGTERM, None)
