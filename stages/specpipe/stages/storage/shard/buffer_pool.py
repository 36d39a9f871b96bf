"""Pool of reusable buffers; a buffer returns when its array is garbage-collected.

Fresh memory costs a page fault and a page of zeros for each page; in virtual machines whose host
takes free pages back it costs more than reading what is to go there.
"""

import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

_Buffer = npt.NDArray[np.uint8]
_MOST_WASTE = 1.25
"""A buffer serves arrays down to this part of its size."""


class BufferPool:
    """Arrays in memory of at most `most_bytes` together, or as much as those in use take.

    Free buffers beyond that are kept until something is made that fits none of them.

    A buffer is free again when the last view of the array that was made in it is gone, a tensor's
    included. Any number of threads may make arrays and let go of them.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._num_bytes = 0
        """Of all buffers, in use and free."""
        self._free: list[_Buffer] = []
        # A finaliser may run at any moment, also while this thread holds the lock.
        self._returned: list[_Buffer] = []
        self._lock = threading.Lock()

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """An array whose values are arbitrary: what was there before."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        buffer = self._take(size)
        if buffer is None:
            buffer = np.empty(size, np.uint8)
        lease = _Lease(buffer)
        weakref.finalize(lease, self._returned.append, buffer)
        values: npt.NDArray[Any] = np.asarray(lease)[:size].view(dtype).reshape(shape)
        return values

    def _take(self, size: int) -> _Buffer | None:
        """A free buffer that is just large enough; None, room being made, if there is none."""
        with self._lock:
            while self._returned:
                self._free.append(self._returned.pop())
            fitting = [b for b in self._free if size <= len(b) <= _MOST_WASTE * size]
            if fitting:
                chosen = min(fitting, key=len)
                self._free = [buffer for buffer in self._free if buffer is not chosen]
                return chosen
            self._num_bytes += size
            while self._free and self._num_bytes > self._most_bytes:
                self._num_bytes -= len(self._free.pop(0))
            return None


class _Lease:
    """Owner of a buffer that arrays use; it is freed with the last array that refers to it."""

    def __init__(self, buffer: _Buffer) -> None:
        self._buffer = buffer

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._buffer.__array_interface__
