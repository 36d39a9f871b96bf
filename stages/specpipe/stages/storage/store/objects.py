"""Stored objects and their entries: read one checked, check one in pieces, make its entry."""

from collections.abc import Callable, Iterator

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import ObjectEntry
from specpipe.stages.storage.store.crc import crc32c, object_entry
from specpipe.stages.storage.store.folder import HOW_TO_REPAIR, Folder
from specpipe.stages.untrusted.files import MOST_BYTES

_PIECE_BYTES = 64 * 2**20


def read_object(folder: Folder, entry: ObjectEntry) -> bytes:
    """The payload of an object. Raises IntegrityError unless size and crc32c are the entry's."""
    is_small = not entry.trailer_bytes and not entry.key.endswith(".safetensors")
    if is_small and entry.size > MOST_BYTES:
        raise IntegrityError(
            f"{folder.where(entry.key)} is listed with {entry.size} bytes, more than {MOST_BYTES}"
        )
    # One byte more than there should be: a longer object shows, at no extra request.
    data = folder.read(entry.key, 0, entry.size + 1, num_expected=entry.size)
    check_size(folder, entry, len(data))
    payload = data[: len(data) - entry.trailer_bytes]
    trailer = data[len(payload) :]
    check_crc(folder, entry, crc32c(payload), trailer)
    return payload


def check_object(
    folder: Folder, entry: ObjectEntry, progress: Callable[[int], None] = lambda num_bytes: None
) -> None:
    """Read an object, whose size is known to be the entry's, in pieces and check its crc32c.

    Raises IntegrityError; `progress` gets the bytes of each piece.
    """
    crc, payload_size = 0, entry.size - entry.trailer_bytes
    for piece in _pieces(folder, entry.key, payload_size):
        crc = crc32c(piece, crc)
        progress(len(piece))
    check_crc(folder, entry, crc, folder.read(entry.key, payload_size, entry.size))


def measure_object(folder: Folder, key: str) -> ObjectEntry:
    """The entry of an object that is in the store. Raises IntegrityError if it is missing."""
    size = folder.size(key)
    if size is None:
        raise IntegrityError(f"{folder.where(key)} is missing")
    crc = 0
    for piece in _pieces(folder, key, size):
        crc = crc32c(piece, crc)
    return ObjectEntry(key=key, size=size, crc32c=crc)


def put_object(folder: Folder, key: str, data: bytes) -> None:
    """Write or replace an object, unless just these bytes are in the store already."""
    if folder.size(key) != len(data) or measure_object(folder, key) != object_entry(key, data):
        folder.write(key, data)


def check_size(folder: Folder, entry: ObjectEntry, size: int) -> None:
    if size != entry.size:
        more = "more than" if size > entry.size else str(size)
        raise IntegrityError(
            f"{folder.where(entry.key)} has {more} {'the ' if size > entry.size else 'of '}"
            f"{entry.size} bytes that it was written with; {HOW_TO_REPAIR}"
        )


def check_crc(folder: Folder, entry: ObjectEntry, crc: int, trailer: bytes = b"") -> None:
    """Compare the crc32c of a payload with the entry, and the trailer with both."""
    if crc != entry.crc32c or trailer != entry.crc32c.to_bytes(4, "little")[: len(trailer)]:
        raise IntegrityError(
            f"{folder.where(entry.key)} is damaged: its crc32c is not the one it was written "
            f"with; {HOW_TO_REPAIR}"
        )


def _pieces(folder: Folder, key: str, size: int) -> Iterator[bytes]:
    for start in range(0, size, _PIECE_BYTES):
        stop = min(size, start + _PIECE_BYTES)
        yield folder.read(key, start, stop, num_expected=stop - start)
