"""Read one chunk of an array."""

from dataclasses import dataclass

import numpy as np

from specpipe.schemas.dump import ObjectEntry
from specpipe.stages.storage.arrays import ArrayLayout
from specpipe.stages.storage.chunk_codec import Buffer, ChunkCodec
from specpipe.stages.storage.folder import Folder
from specpipe.stages.storage.objects import read_object
from specpipe.stages.storage.row_scan import RowScan


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """What reading a chunk has shown."""

    crcs: list[int]
    """Of each piece of its rows."""
    tail: Buffer | None
    """Padding and trailer, if the object's crc32c is still to be compared."""
    problem: str | None
    """What is wrong with its values."""


def read_chunk(
    folder: Folder, codec: ChunkCodec, array: ArrayLayout, entry: ObjectEntry, scan: RowScan
) -> ReadChunk:
    """Read a chunk's rows to where they belong: the memory that `scan` goes through.

    Raises IntegrityError if the object is missing, too short, damaged or no chunk.
    """
    tail = None
    if codec.is_raw:
        tail = np.empty(entry.size - scan.num_bytes, np.uint8)
        folder.read_into(entry.key, 0, [*scan.views, tail.data], scan.filled)
    else:
        data = memoryview(read_object(folder, entry))
        codec.decode(array, data, scan.rows, folder.where(entry.key))
        scan.fill()
    return ReadChunk(scan.crcs, tail, scan.problem)
