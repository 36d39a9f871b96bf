"""Upload queue of a shard's objects: several at a time, in bounded memory."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Condition

import numpy as np

from specpipe.schemas.records.dump import ObjectEntry
from specpipe.stages.storage.chunks.arrays import ArrayLayout
from specpipe.stages.storage.chunks.codec import Buffer, ChunkCodec, buffer_bytes
from specpipe.stages.storage.store.crc import chunk_entry, object_entry
from specpipe.stages.storage.store.folder import Folder

_PARALLEL_WRITES = 4


class Outbox:
    """Allocates buffers, and uploads the filled ones in the background.

    All buffers and their encoded forms together take no more than `most_bytes`:
    the caller waits for the store instead. If the buffers that it fills at the same time are
    larger than the limit, they are allocated anyway.

    Errors of a transfer are raised by the next call.
    """

    def __init__(self, folder: Folder, prefix: str, codec: ChunkCodec, most_bytes: int) -> None:
        self._folder = folder
        self._prefix = prefix
        self._codec = codec
        self._most_bytes = most_bytes
        self._threads = ThreadPoolExecutor(_PARALLEL_WRITES, thread_name_prefix="shard-writer")
        # All of the following changes under this lock.
        self._changed = Condition()
        self._num_bytes = 0
        self._num_sending = 0
        self._free: list[Buffer] = []
        self._entries: list[ObjectEntry] = []
        self._failure: BaseException | None = None

    def buffer(self, array: ArrayLayout) -> Buffer:
        """An empty buffer for a chunk; waits until there is memory for it."""
        size = buffer_bytes(array)
        with self._changed:
            while True:
                self._raise_failure()
                # By number: a variable would keep a buffer alive that is counted as let go of.
                for at in range(len(self._free)):
                    if len(self._free[at]) == size:
                        return self._free.pop(at)
                if self._has_room(size):
                    self._num_bytes += size
                    return np.empty(size, np.uint8)
                if self._free:
                    self._num_bytes -= len(self._free.pop())
                else:
                    self._changed.wait()

    def put(self, name: str, data: bytes) -> None:
        """Send a small object."""
        key = f"{self._prefix}/{name}"

        def send() -> ObjectEntry:
            self._folder.write(key, data)
            return object_entry(key, data)

        with self._changed:
            self._raise_failure()
        self._submit(send, 0)

    def put_chunk(
        self, array: ArrayLayout, index: int, chunk: Buffer, num_bytes: int, crc: int
    ) -> None:
        """Send a chunk: the first `num_bytes` of a buffer, whose crc32c is `crc`."""
        codec = self._codec
        key = f"{self._prefix}/{codec.chunk_name(array, index)}"
        extra = codec.extra_bytes(array)
        # Not in the function's closure, which lives until the store has answered.
        held = [chunk]
        del chunk

        def send() -> ObjectEntry:
            encoded = codec.encode(array, held[0], num_bytes, crc)
            is_copied = extra > 0
            if is_copied:
                self._take_back(held.pop())
            self._folder.write(key, encoded.data)
            if not is_copied:
                self._take_back(held.pop())
            if encoded.trailer_bytes:
                return chunk_entry(key, len(encoded.data), encoded.crc32c)
            return ObjectEntry(key=key, size=len(encoded.data), crc32c=encoded.crc32c)

        with self._changed:
            self._raise_failure()
            while not self._has_room(extra):
                if self._free:
                    self._num_bytes -= len(self._free.pop())
                else:
                    self._changed.wait()
                self._raise_failure()
            self._num_bytes += extra
        self._submit(send, extra)

    def close(self) -> list[ObjectEntry]:
        """Wait until all is in the store; returns the entries, sorted by key."""
        self._threads.shutdown()
        with self._changed:
            self._raise_failure()
            return sorted(self._entries, key=lambda entry: entry.key)

    def _has_room(self, size: int) -> bool:
        # With nothing on its way, waiting would be for ever.
        return self._num_bytes + size <= self._most_bytes or (
            self._num_sending == 0 and not self._free
        )

    def _submit(self, send: Callable[[], ObjectEntry], extra: int) -> None:
        def run() -> None:
            try:
                entry = None if self._failure else send()
            except BaseException as error:
                entry = None
                self._failure = self._failure or error
            with self._changed:
                if entry is not None:
                    self._entries.append(entry)
                self._num_sending -= 1
                self._num_bytes -= extra
                self._changed.notify_all()

        with self._changed:
            self._num_sending += 1
        self._threads.submit(run)

    def _take_back(self, chunk: Buffer) -> None:
        with self._changed:
            self._free.append(chunk)
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            # Whoever sees the error finds nothing half written: what waits is not sent any more.
            self._changed.wait_for(lambda: self._num_sending == 0)
            raise self._failure
