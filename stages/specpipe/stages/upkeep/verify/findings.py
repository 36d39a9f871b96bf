"""The damage that a verification has found so far."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import ObjectEntry
from specpipe.stages.storage.store.folder import HOW_TO_REPAIR, Folder
from specpipe.stages.storage.store.objects import check_object, check_size

NUM_THREADS = 8
"""Threads that read at once; each holds a chunk or two."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Damage:
    """The problem of one object; `key` is relative to the dump's root."""

    key: str
    problem: str


class Findings:
    """The first problem of each object, and the progress of the reading."""

    def __init__(self, folder: Folder, progress: Callable[[int, int], None]) -> None:
        self.folder = folder
        self.sizes = folder.sizes()
        """Every object that there is, listed or not."""
        self._meter = _Meter(progress)
        self._problems: dict[str, str] = {}

    def expect(self, num_bytes: int) -> None:
        """Bytes there are to read."""
        self._meter.num_bytes = num_bytes

    def in_parallel(
        self, check: Callable[["Findings", Item], Result], items: Iterable[Item]
    ) -> list[Result]:
        """The results of check(findings, item) in order, from `NUM_THREADS` threads.

        Each item has findings of its own, which become ours in the order of the items: what is
        found does not depend on which thread comes first.
        """
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            parts = [(self._part(), item) for item in items]
            tasks = [pool.submit(check, part, item) for part, item in parts]
            try:
                results = [task.result() for task in tasks]
            except BaseException:
                self._meter.stop()
                pool.shutdown(cancel_futures=True)
                raise
        for part, _ in parts:
            for key, problem in part._problems.items():
                self._problems.setdefault(key, problem)
        return results

    def _part(self) -> "Findings":
        part = copy(self)
        part._problems = self._problems.copy()
        return part

    def note(self, key: str, problem: str | IntegrityError) -> None:
        """Keep the first problem of an object, without what the report says anyway."""
        text = str(problem).removeprefix(self.folder.where(key)).removesuffix(f"; {HOW_TO_REPAIR}")
        self._problems.setdefault(key, text.lstrip(": "))

    def is_sound(self, key: str) -> bool:
        return key not in self._problems

    def damages(self) -> tuple[Damage, ...]:
        return tuple(Damage(key, problem) for key, problem in sorted(self._problems.items()))

    def advance(self, num_bytes: int) -> None:
        """Report that many more bytes as read."""
        self._meter.advance(num_bytes)

    def check_object(self, entry: ObjectEntry) -> bool:
        """Read an object and check size and crc32c; True if it is sound."""
        if self.check_size(entry):
            try:
                check_object(self.folder, entry, self.advance)
            except IntegrityError as error:
                self.note(entry.key, error)
        return self.is_sound(entry.key)

    def check_size(self, entry: ObjectEntry) -> bool:
        """Whether the object exists and has the size it was written with."""
        if entry.key not in self.sizes:
            self.note(entry.key, "is missing")
            return False
        try:
            check_size(self.folder, entry, self.sizes[entry.key])
        except IntegrityError as error:
            self.note(entry.key, error)
        return self.sizes[entry.key] == entry.size


class _Meter:
    """Bytes read, by all threads together."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self.num_bytes = 0
        self._num_read = 0
        self._progress = progress
        self._lock = threading.Lock()
        self._stopped = False

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            if self._stopped:
                raise CancelledError
            self._num_read += num_bytes
            self._progress(self._num_read, self.num_bytes)

    def stop(self) -> None:
        """Let no thread get further: another one has failed, or somebody wants to leave."""
        self._stopped = True
