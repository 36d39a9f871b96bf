"""A local disk that counts what it is asked for."""

from collections.abc import Sequence
from threading import Lock

from specpipe.stages.storage.store.local_disk import LocalDisk
from specpipe.stages.storage.store.protocol import TakeBlock


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

    def read_blocks(self, path: str, start: int, sizes: Sequence[int], take: TakeBlock) -> bool:
        self._count(sum(sizes))
        return super().read_blocks(path, start, sizes, take)

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes
            self.num_requests += 1
