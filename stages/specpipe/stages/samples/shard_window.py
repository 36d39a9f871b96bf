"""A window of shards in memory, opened ahead of use within a byte budget.

What will be used, and in which order, is known. So each shard is opened once per turn, and what is
not needed soonest makes room. The arrays of all shards that are in memory or being read take at
most the budget, or as much as the largest shard alone where that is more. (While a chunk comes
from an object store it is in memory twice.)

Samples are views of their shards' arrays until something is made of them, and shards with such
views count. Where the next shard has no room beside them, the samples are copied, and their shards
go.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

from specpipe.stages.process.reading_threads import ReadingThreads
from specpipe.stages.samples.batch import DrafterSample
from specpipe.stages.samples.reader import SampleReader, SampleRef, Samples, WholeShard
from specpipe.stages.storage.shard.buffer_pool import BufferPool

_PARALLEL_SHARDS = 4
_USES_AHEAD = 4096
"""Most uses that are looked at ahead: a bound where the whole dump fits the budget."""


@dataclass(frozen=True, slots=True)
class Read:
    """Samples of one dump that are read together."""

    reader: SampleReader
    refs: Sequence[SampleRef]
    is_sparse: bool
    """Read these samples alone, not their whole shards."""


R = TypeVar("R", bound=Read)
T = TypeVar("T")
Key = tuple[SampleReader, int, tuple[int, ...]]
"""A shard of a dump, or the samples of it with these indices."""


@dataclass(frozen=True, slots=True)
class _Use(Generic[R]):
    """The samples of a read that follow each other in one shard."""

    read: R
    refs: Sequence[SampleRef]
    is_last: bool

    @property
    def key(self) -> Key:
        indices = tuple(ref.index for ref in self.refs) if self.read.is_sparse else ()
        return self.read.reader, self.refs[0].shard_id, indices

    @property
    def num_bytes(self) -> int:
        reader = self.read.reader
        if self.read.is_sparse:
            return reader.some_bytes(self.refs)
        return reader.whole_bytes(self.refs[0].shard_id)

    def open(self, pool: BufferPool) -> WholeShard | Samples:
        reader, shard_id = self.read.reader, self.refs[0].shard_id
        if self.read.is_sparse:
            return reader.some(shard_id, self.refs)
        return reader.whole(shard_id, pool)


class ShardWindow(Generic[R, T]):
    """Each read, in the order of `plan`, with the result of `make` on its samples.

    The samples are lent to `make`: it copies what it keeps. One thread iterates.
    """

    def __init__(
        self, plan: Iterable[R], make: Callable[[R, list[DrafterSample]], T], budget_bytes: int
    ) -> None:
        self._make = make
        self._budget_bytes = budget_bytes
        self._buffers = BufferPool(budget_bytes)
        """Memory of shards that have gone is that of the next ones."""
        self._rest = _uses(plan)
        self._next = next(self._rest, None)
        """The first use that is not ahead yet."""
        self._ahead: deque[_Use[R]] = deque()
        self._num_ahead: Counter[Key] = Counter()
        self._samples: list[DrafterSample] = []
        """Of the read that is being put together."""
        self._in_use: set[Key] = set()
        """Shards that samples of it are views of."""
        self._open: dict[Key, tuple[Future[WholeShard | Samples], int]] = {}
        """With its bytes; the one used longest ago first."""
        self._num_bytes = 0
        self._threads = ReadingThreads(_PARALLEL_SHARDS, "specpipe-read")

    def __iter__(self) -> Iterator[tuple[R, T]]:
        """Raises what opening a shard raised, when the shard's turn has come."""
        while True:
            self._look_ahead()
            if not self._ahead:
                return
            use = self._ahead.popleft()
            self._take(use)
            if self._budget_bytes:
                self._look_ahead()
            if use.is_last:
                made = self._make(use.read, self._samples)
                self._samples = []
                self._in_use.clear()
                yield use.read, made
                del made

    def close(self) -> None:
        """Open no more; what is being read now ends on its own."""
        self._threads.close()

    def _take(self, use: _Use[R]) -> None:
        """The samples of a use, to those of its read."""
        key = use.key
        future, num_bytes = self._open.pop(key)
        opened = future.result()
        self._open[key] = future, num_bytes
        self._num_ahead[key] -= 1
        self._in_use.add(key)
        if isinstance(opened, WholeShard):
            self._samples += [opened.sample(ref) for ref in use.refs]
        else:
            self._samples += [opened[ref.index] for ref in use.refs]

    def _look_ahead(self) -> None:
        """Open what comes next while there is room; at the least, what comes first."""
        while (use := self._next) is not None and len(self._ahead) < _USES_AHEAD:
            key = use.key
            if key not in self._open:
                num_bytes = use.num_bytes
                if not self._make_room(num_bytes):
                    if self._ahead:
                        return
                    self._let_go()
                    self._make_room(num_bytes)
                self._open[key] = self._threads.submit(use.open, self._buffers), num_bytes
                self._num_bytes += num_bytes
            self._num_ahead[key] += 1
            self._ahead.append(use)
            self._next = next(self._rest, None)

    def _let_go(self) -> None:
        """Copy the samples of the read that is being put together, so that their shards may go."""
        self._samples = [sample.copy() for sample in self._samples]
        self._in_use.clear()

    def _make_room(self, num_bytes: int) -> bool:
        """Let shards go that nothing uses, until there is room; False if there is none."""
        used = self._in_use
        idle = [key for key in self._open if not self._num_ahead[key] and key not in used]
        for key in idle:
            if self._num_bytes + num_bytes <= self._budget_bytes:
                break
            self._num_bytes -= self._open.pop(key)[1]
            del self._num_ahead[key]
        return self._num_bytes + num_bytes <= self._budget_bytes


def _uses(plan: Iterable[R]) -> Iterator[_Use[R]]:
    for read in plan:
        runs = [list(run) for _, run in groupby(read.refs, lambda ref: ref.shard_id)]
        for at, refs in enumerate(runs, start=1):
            yield _Use(read, refs, at == len(runs))
