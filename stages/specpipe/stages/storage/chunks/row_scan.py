"""Check rows block by block while they are read, when each block is in the CPU's cache.

Crc and values of rows that have long been read cost a pass over memory each.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from specpipe.stages.storage.chunks.arrays import ArrayLayout, values_problem
from specpipe.stages.storage.store.crc import crc32c

_BLOCK_BYTES = 2**18
"""A block and its copy fit into a core's cache."""


class RowScan:
    """The crc32c of pieces of an array's rows, and the problems of their values."""

    def __init__(
        self,
        array: ArrayLayout,
        ends: Sequence[int],
        vocab_size: int,
        rows: npt.NDArray[Any] | None = None,
    ) -> None:
        """`ends` are the bytes at which the pieces end; the last is the number of bytes.

        `rows` [rows, ...] is where they are to go, in whatever strides; None: nowhere.
        """
        self._array = array
        self._rows = rows
        self._vocab_size = vocab_size
        self._starts: list[int] = []
        self.sizes: list[int] = []
        """Bytes of each block in which the rows are to be taken."""
        self._first: set[int] = set()
        self._last: list[int] = []
        step = max(1, _BLOCK_BYTES // array.row_bytes) * array.row_bytes
        start = 0
        for end in ends:
            self._first.add(len(self.sizes))
            # A piece of nothing is a block of nothing.
            starts = [*range(start, end, step)] or [start]
            self._starts += starts
            self.sizes += [min(step, end - at) for at in starts]
            self._last.append(len(self.sizes) - 1)
            start = end
        self.num_bytes = start
        self._crcs = [0] * len(self.sizes)
        self._problems: list[str | None] = [None] * len(self.sizes)

    def take(self, number: int, block: memoryview) -> None:
        """Take in a block, those before it having been taken in."""
        before = 0 if number in self._first else self._crcs[number - 1]
        self._crcs[number] = crc32c(block, before)
        values = np.frombuffer(block, self._array.dtype)
        self._problems[number] = values_problem(self._array, values, self._vocab_size)
        if self._rows is not None:
            first = self._starts[number] // self._array.row_bytes
            rows = values.reshape(-1, *self._array.row_shape)
            self._rows[first : first + len(rows)] = rows

    def take_all(self, data: memoryview) -> None:
        """Take in rows that are in memory already."""
        for number, (start, size) in enumerate(zip(self._starts, self.sizes, strict=True)):
            self.take(number, data[start : start + size])

    @property
    def crcs(self) -> list[int]:
        """Of each piece."""
        return [self._crcs[number] for number in self._last]

    @property
    def problem(self) -> str | None:
        """What no crc shows, of all rows."""
        return next((problem for problem in self._problems if problem), None)
