"""Go through rows while they are being read, block by block, as long as a block is in the cache.

Crc and values of rows that have long been read cost a pass over memory each.
"""

from collections.abc import Sequence

from specpipe.stages.storage.arrays import ArrayLayout, values_problem
from specpipe.stages.storage.chunk_codec import Buffer
from specpipe.stages.storage.crc import crc32c

_BLOCK_BYTES = 2**20


class RowScan:
    """The crc32c of each piece of some rows of an array, and what is wrong with their values."""

    def __init__(
        self, array: ArrayLayout, rows: Buffer, ends: Sequence[int], vocab_size: int
    ) -> None:
        """`ends` are the bytes at which the pieces of `rows` end; the last is their number."""
        self._array = array
        self.rows = rows
        self._vocab_size = vocab_size
        self._blocks: list[slice] = []
        self._first: set[int] = set()
        self._last: list[int] = []
        start = 0
        for end in ends:
            self._first.add(len(self._blocks))
            stops = [*range(start + _BLOCK_BYTES, end, _BLOCK_BYTES), end]
            starts = [start, *stops[:-1]]
            self._blocks += [slice(*bounds) for bounds in zip(starts, stops, strict=True)]
            self._last.append(len(self._blocks) - 1)
            start = end
        self._crcs = [0] * len(self._blocks)
        self._problems: list[str | None] = [None] * len(self._blocks)

    @property
    def num_bytes(self) -> int:
        return len(self.rows)

    @property
    def views(self) -> list[memoryview]:
        """The memory of the rows, for whoever fills it: in order, and possibly over again."""
        return [self.rows[block].data for block in self._blocks]

    def filled(self, number: int) -> None:
        """Take in one of the views, those before it having been taken in."""
        if number >= len(self._blocks):  # Not of the rows, but of what stands after them.
            return
        block = self.rows[self._blocks[number]]
        before = 0 if number in self._first else self._crcs[number - 1]
        self._crcs[number] = crc32c(block, before)
        values = block.view(self._array.dtype)
        self._problems[number] = values_problem(self._array, values, self._vocab_size)

    def fill(self) -> None:
        """Take in rows that are there already."""
        for number in range(len(self._blocks)):
            self.filled(number)

    @property
    def crcs(self) -> list[int]:
        """Of each piece."""
        return [self._crcs[number] for number in self._last]

    @property
    def problem(self) -> str | None:
        """What no crc shows, of all rows."""
        return next((problem for problem in self._problems if problem), None)
