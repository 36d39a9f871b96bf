"""A local disk that counts what it is asked for."""

from collections.abc import Callable, Sequence
from threading import Lock

from specpipe.stages.storage.local_disk import LocalDisk


class CountingDisk(LocalDisk):
    """`num_bytes` read in `num_requests`, from any thread."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.num_requests = 0
        self._lock = Lock()

    def read(self, path: str, start: int, stop: int | None, num_expected: int | None) -> bytes:
        data = super().read(path, start, stop, num_expected)
        self._count(len(data))
        return data

    def read_into(
        self, path: str, start: int, views: Sequence[memoryview], filled: Callable[[int], None]
    ) -> bool:
        self._count(sum(map(len, views)))
        return super().read_into(path, start, views, filled)

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes
            self.num_requests += 1
