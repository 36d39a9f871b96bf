"""The operations of a store that a folder needs. Paths are absolute; errors are the store's own."""

from collections.abc import Callable, Sequence
from typing import Protocol

TakeBlock = Callable[[int, memoryview], None]
"""Called with the number of a block and its bytes, which are lent for the call only."""


class TornRead(EOFError):
    """A store returned fewer bytes than the object has: the answer was cut off."""


class Store(Protocol):
    """LocalDisk or RemoteStore. A missing object raises FileNotFoundError where it is read."""

    def read(self, path: str, start: int, stop: int | None, num_expected: int | None) -> bytes:
        """The bytes [start, stop) of an object, up to its end if None; fewer where it ends sooner.

        Raises TornRead where fewer than `num_expected` come although the object has more.
        """

    def read_blocks(self, path: str, start: int, sizes: Sequence[int], take: TakeBlock) -> bool:
        """Hand over blocks of these sizes from byte `start` on; False if the object ends early."""

    def write(self, path: str, data: bytes | memoryview) -> None:
        """Write or replace an object, all or nothing."""

    def move_in(self, path: str, source: str) -> None:
        """Write or replace an object by a file of this machine, all or nothing.

        The file is beside `path` where the store is this machine's disk; it may be moved.
        """

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one, all or nothing; False if there is one."""

    def size(self, path: str) -> int | None:
        """Bytes of an object, None if it is missing or a folder."""

    def sizes(self, path: str, *, temporary: bool = False, links: bool = False) -> dict[str, int]:
        """Path and size of every object below a folder, in no order: those that are whole, or the
        temporary ones alone. With `links`, symbolic links to folders are followed that stand in
        the folder itself, and never others."""

    def remove(self, path: str) -> None:
        """Remove an object, or a folder with all that is in it; a missing one is no error."""

    def is_transient(self, error: BaseException) -> bool:
        """Whether the same request may succeed in a while."""

    def advice(self, error: BaseException, path: str) -> str:
        """What somebody can do about an error that stays."""
