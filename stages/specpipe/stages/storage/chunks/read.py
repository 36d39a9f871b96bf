"""Read one chunk of an array."""

from dataclasses import dataclass

import numpy as np

from specpipe.schemas.records.dump import ObjectEntry
from specpipe.stages.storage.chunks.arrays import ArrayLayout
from specpipe.stages.storage.chunks.codec import ChunkCodec
from specpipe.stages.storage.chunks.row_scan import RowScan
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.objects import read_object


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """Result of reading a chunk."""

    crcs: list[int]
    """Of each piece of its rows."""
    tail: bytes | None
    """Padding and trailer, if the object's crc32c is still to be compared."""
    problem: str | None
    """What is wrong with its values."""


def read_chunk(
    folder: Folder, codec: ChunkCodec, array: ArrayLayout, entry: ObjectEntry, scan: RowScan
) -> ReadChunk:
    """Read a chunk's rows through `scan`, which puts them where they belong.

    Raises IntegrityError if the object is missing, too short, damaged or no chunk.
    """
    if codec.is_raw:
        sizes = [*scan.sizes, entry.size - scan.num_bytes]
        tail = b""

        def take(number: int, block: memoryview) -> None:
            nonlocal tail
            if number < len(scan.sizes):
                scan.take(number, block)
            else:
                tail = bytes(block)

        folder.read_blocks(entry.key, 0, sizes, take)
        return ReadChunk(scan.crcs, tail, scan.problem)
    data = memoryview(read_object(folder, entry))
    rows = np.empty(scan.num_bytes, np.uint8)
    codec.decode(array, data, rows, folder.where(entry.key))
    del data
    scan.take_all(rows.data)
    return ReadChunk(scan.crcs, None, scan.problem)
