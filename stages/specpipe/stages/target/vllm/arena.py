"""A ring buffer in shared memory through which states leave the engine's process.

The command lends an extent of it to each request before the request goes to the engine, so no
state is ever waiting for room: where the ring is full, the engine gets no further requests. The
engine's process writes the states there and then says so through a pipe.

Neither has a name that could be left over: the engine's process opens both through /proc, and they
are gone when both processes are. A container's limit on /dev/shm does not apply.
"""

import mmap
import os
import select
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

REQUEST_FIELD = "specpipe"
"""Of a request's kv_transfer_params: its extent. Requests without it leave nothing behind."""

_ALIGNMENT = 4096
_TICKET = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class ArenaAddress:
    """Where another process of this machine finds an arena."""

    pid: int
    memory: int
    """File descriptor in the process `pid`."""
    pipe: int
    """File descriptor in the process `pid`; tickets are written to it."""

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ArenaAddress":
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of the arena that one request's states are written to."""

    ticket: int
    start: int
    num_bytes: int


class Arena:
    """The reading side: allocates extents, and frees them in the order of allocation."""

    def __init__(self, num_bytes: int) -> None:
        self._capacity = 0
        self._memory = os.memfd_create("specpipe-states")
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._map: mmap.mmap | None = None
        self._lent: deque[tuple[Extent, int]] = deque()
        self._next_ticket = 0
        self._grow(num_bytes)

    @property
    def address(self) -> ArenaAddress:
        return ArenaAddress(os.getpid(), self._memory, self._writer)

    @property
    def num_bytes(self) -> int:
        return self._capacity

    def lend(self, num_bytes: int) -> Extent | None:
        """An extent, or None while there is no room for it; one that is larger than all there is
        makes the arena grow as soon as nothing is lent."""
        size = _aligned(max(1, num_bytes))
        if size > self._capacity and not self._lent:
            self._grow(size)
        start = self._room(size)
        if start is None:
            return None
        extent = Extent(self._next_ticket, start, num_bytes)
        self._next_ticket += 1
        self._lent.append((extent, start + size))
        return extent

    def view(self, extent: Extent) -> memoryview:
        """The extent's bytes; they may be overwritten as soon as it is given back."""
        assert self._map is not None
        return memoryview(self._map)[extent.start : extent.start + extent.num_bytes]

    def take_back(self, extent: Extent) -> None:
        oldest, _ = self._lent.popleft()
        assert oldest is extent, "extents are given back in the order in which they were lent"

    def landed(self, seconds: float = 0.0) -> Iterator[int]:
        """Tickets of extents that are written by now, after a wait of at most `seconds` for the
        first one."""
        if not select.select([self._reader], [], [], seconds)[0]:
            return
        # So few bytes are written whole and read whole.
        data = os.read(self._reader, 4096 * _TICKET.size)
        for (ticket,) in _TICKET.iter_unpack(data):
            yield ticket

    def close(self) -> None:
        for descriptor in (self._memory, self._reader, self._writer):
            os.close(descriptor)
        # The map itself goes with the last view of it.
        self._map = None

    def _room(self, size: int) -> int | None:
        """Where `size` bytes are free in a row, behind what was lent last."""
        if not self._lent:
            return 0 if self._capacity >= size else None
        first, last = self._lent[0][0].start, self._lent[-1][1]
        if last <= first:  # It has gone round.
            return last if first - last >= size else None
        if self._capacity - last >= size:
            return last
        return 0 if first >= size else None

    def _grow(self, num_bytes: int) -> None:
        self._capacity = _aligned(num_bytes)
        os.ftruncate(self._memory, self._capacity)
        self._map = mmap.mmap(self._memory, self._capacity)


class ArenaWriter:
    """The writing side, in another process."""

    def __init__(self, address: ArenaAddress) -> None:
        """Raises OSError where the other process is not on this machine, or another user's."""
        folder = f"/proc/{address.pid}/fd"
        self._memory = os.open(f"{folder}/{address.memory}", os.O_RDWR)
        self._pipe = os.open(f"{folder}/{address.pipe}", os.O_WRONLY)
        self._map: mmap.mmap | None = None

    def view(self, start: int, num_bytes: int) -> memoryview:
        """Bytes to write to."""
        if self._map is None or len(self._map) < start + num_bytes:
            self._map = mmap.mmap(self._memory, os.fstat(self._memory).st_size)
        return memoryview(self._map)[start : start + num_bytes]

    def say_landed(self, ticket: int) -> None:
        """Tell the other side that the extent with this ticket is written."""
        os.write(self._pipe, _TICKET.pack(ticket))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
