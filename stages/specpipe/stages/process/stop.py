"""Early stop by a scheduler's SIGTERM or a time limit: polled by a loop, or as an interrupt."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from specpipe.schemas.errors import UnfinishedError


class StopQuestion:
    """Answers whether a run should stop early, and why."""

    def __init__(
        self,
        time_limit: float | None,
        began: float | None = None,
        act: Callable[[str], None] | None = None,
    ) -> None:
        """`began`: when the limit began to count, by time.monotonic; None: now. `act` is called
        with the reason, once, as soon as there is one."""
        since = time.monotonic() if began is None else began
        self._deadline = None if time_limit is None else since + time_limit
        self._signal: str | None = None
        self._act = act
        self._time_is_up = False

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self._time_is_up:
            self._signal = signal.Signals(number).name
        self._time_is_up = False
        if self._act is not None:
            act, self._act = self._act, None
            act(self() or "asked to stop")

    def on_time(self) -> None:
        self._time_is_up = True
        # What the main thread waits for ends by a signal alone.
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGTERM)

    def of_signal(self) -> str | None:
        """The answer where the time limit does not count."""
        return None if self._signal is None else f"asked to stop ({self._signal})"

    def __call__(self) -> str | None:
        if self._signal is None and self._deadline is not None:
            return "the time limit is reached" if time.monotonic() >= self._deadline else None
        return self.of_signal()


@contextmanager
def stop_question(
    time_limit: float | None,
    began: float | None = None,
    act: Callable[[str], None] | None = None,
    signals: Sequence[int] = (signal.SIGTERM,),
) -> Iterator[StopQuestion]:
    """Turn signals into a question that a loop asks, or into a call of `act` by the main thread,
    which the time limit calls too. Only the main thread can.

    A run that was over when it was asked is complete; then whoever heard SIGTERM before hears it.
    """
    question = StopQuestion(time_limit, began, act)
    if threading.current_thread() is not threading.main_thread():
        yield question
        return
    timer = None
    if act is not None and time_limit is not None:
        timer = threading.Timer(time_limit, question.on_time)
        timer.daemon = True
    before = {number: signal.signal(number, question.on_signal) for number in signals}
    try:
        if timer is not None:
            timer.start()
        yield question
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    if question.of_signal() and callable(before[signal.SIGTERM]):
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def stops_early(time_limit: float | None = None) -> Iterator[None]:
    """Interrupt what runs inside, as Ctrl-C does, at SIGTERM or after so many seconds.

    Raises UnfinishedError then: the main thread is left to put in order what was begun. Outside of
    the main thread, where no signal can be taken, nothing is interrupted.
    """
    reasons: list[str] = []

    def interrupt(reason: str) -> None:
        reasons.append(reason)
        raise KeyboardInterrupt

    try:
        with stop_question(time_limit, act=interrupt):
            yield
    except KeyboardInterrupt:
        if not reasons:
            raise
        raise UnfinishedError(f"{reasons[0]}; run the same command again to continue") from None
