"""Reads in the order in which they are planned, made ready on background threads."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from itertools import groupby
from types import TracebackType
from typing import Generic, Self

from specpipe.schemas.settings.train import PREFETCH_MIB
from specpipe.stages.process.reading_threads import ReadingThreads
from specpipe.stages.samples.batch import DrafterSample
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.samples.shard_window import R, Read, ShardWindow, T


class ReadAhead(Generic[R, T]):
    """Each read of a plan, with the result of `make` on its samples.

    Shards are read ahead within the budget (see ShardWindow), and the read after the one in use is
    made. Without a budget nothing is read before it is asked for. Errors of the
    background threads are raised by `next`, in the order of the reads.
    """

    def __init__(
        self, plan: Iterable[R], make: Callable[[R, list[DrafterSample]], T], prefetch_mib: int
    ) -> None:
        self._window = ShardWindow(plan, make, prefetch_mib * 2**20)
        self._made = iter(self._window)
        self._threads = ReadingThreads(1, "specpipe-batch")
        self._is_ahead = prefetch_mib > 0
        self._coming: Future[tuple[R, T] | None] | None = None
        self.seconds_waited = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Read no further; the threads end once what they read has come."""
        self._window.close()
        self._threads.close()

    def __iter__(self) -> Iterator[tuple[R, T]]:
        return self

    def is_ready(self, patience: float) -> bool:
        """Whether `next` would return at once; waits for that at most `patience` seconds."""
        began = time.monotonic()
        done, _ = wait([self._next()], patience)
        self.seconds_waited += time.monotonic() - began
        return bool(done)

    def __next__(self) -> tuple[R, T]:
        began = time.monotonic()
        made = self._next().result()
        self._coming = None
        self.seconds_waited += time.monotonic() - began
        if made is None:
            raise StopIteration
        if self._is_ahead:
            self._next()
        return made

    def _next(self) -> "Future[tuple[R, T] | None]":
        self._coming = self._coming or self._threads.submit(next, self._made, None)
        return self._coming


def read_samples(reader: SampleReader, refs: Sequence[SampleRef]) -> Iterator[DrafterSample]:
    """The samples in the order of the dump, so that each shard is read once."""
    is_sparse = reader.is_sparse(refs)
    # Of a shard that is read whole no more than one sample is in memory twice: whoever keeps
    # samples does not keep their shards.
    runs = groupby(sorted(refs), lambda ref: ref.shard_id if is_sparse else ref)
    plan = (Read(reader, list(run), is_sparse) for _, run in runs)
    with ReadAhead(plan, copies, PREFETCH_MIB) as ahead:
        for _, samples in ahead:
            yield from samples


def copies(_read: Read, samples: Sequence[DrafterSample]) -> list[DrafterSample]:
    return [sample.copy() for sample in samples]
