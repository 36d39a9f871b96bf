"""Threads that read: results, errors and order as of an executor, and an end at once."""

import threading
from concurrent.futures import CancelledError

import pytest

from specpipe.stages.process.reading_threads import ReadingThreads


def test_what_is_done_and_what_goes_wrong() -> None:
    threads, begun = ReadingThreads(1, "read"), list[int]()
    futures = [threads.submit(begun.append, number) for number in range(20)]
    failing = threads.submit(int, "no number")
    assert [future.result() for future in futures] == [None] * 20
    assert begun == [*range(20)]
    with pytest.raises(ValueError, match="no number"):
        failing.result()
    threads.close()


def test_what_waits_when_they_are_closed_is_not_begun() -> None:
    threads = ReadingThreads(2, "read")
    both, go = threading.Barrier(3), threading.Event()

    def wait() -> bool:
        both.wait()
        return go.wait()

    at_work = [threads.submit(wait) for _ in range(2)]
    both.wait()
    waiting = threads.submit(wait)
    threads.close()
    go.set()
    assert [future.result() for future in at_work] == [True, True]
    for future in (waiting, threads.submit(wait)):
        with pytest.raises(CancelledError):
            future.result()
    for thread in threading.enumerate():
        if thread.name.startswith("read_"):
            thread.join(30)
            assert not thread.is_alive()
