"""Daemon threads for reading: a process does not wait for them when it exits.

As Python ends it joins the threads of concurrent.futures. Where a store stalls, those wait for
minutes, and whoever asked the process to stop kills it meanwhile. These are daemons.
"""

import atexit
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_GRACE_SECONDS = 5.0
"""Given at the end to what is at work: a library must not be cut off inside, but what still waits
for a store may."""

_at_work: set[Future[Any]] = set()

_Task = tuple[Future[Any], Callable[[], Any]]


class ReadingThreads:
    """Runs tasks in the order in which they are submitted, at most `most` at a time."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._num_threads = 0
        self._is_closed = False
        self._lock = Lock()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """What the call will return or raise; cancelled where this is closed."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                future.cancel()
                return future
            self._tasks.put((future, partial(call, *args, **kwargs)))
            if self._num_threads < self._most:
                name = f"{self._name}_{self._num_threads}"
                Thread(target=_work, args=(self._tasks,), name=name, daemon=True).start()
                self._num_threads += 1
        return future

    def close(self) -> None:
        """Begin nothing more; what is being done ends on its own."""
        with self._lock:
            self._is_closed = True
            with suppress(Empty):
                while task := self._tasks.get_nowait():
                    task[0].cancel()
            for _ in range(self._num_threads):
                self._tasks.put(None)


def _work(tasks: SimpleQueue[_Task | None]) -> None:
    while task := tasks.get():
        _do(*task)
        # What was read lives no longer than its future.
        del task


def _do(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    _at_work.add(future)
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
    finally:
        _at_work.discard(future)


@atexit.register
def _end() -> None:
    wait(list(_at_work), _GRACE_SECONDS)
