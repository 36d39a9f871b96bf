"""Read one chunk of an array."""

import numpy as np

from specpipe.schemas.dump import ObjectEntry
from specpipe.stages.storage.arrays import ArrayLayout
from specpipe.stages.storage.chunk_codec import Buffer, ChunkCodec
from specpipe.stages.storage.folder import Folder
from specpipe.stages.storage.objects import read_object


def read_chunk(
    folder: Folder, codec: ChunkCodec, array: ArrayLayout, entry: ObjectEntry, rows: Buffer
) -> Buffer | None:
    """Read a chunk's rows to where they belong, `rows` being as long as they are.

    Returns padding and trailer of a raw chunk, whose crc32c is still to be compared; None if it
    has been. Raises IntegrityError if the object is missing, too short, damaged or no chunk.
    """
    if codec.is_raw:
        tail = np.empty(entry.size - len(rows), np.uint8)
        folder.read_into(entry.key, 0, [rows.data, tail.data])
        return tail
    data = memoryview(read_object(folder, entry))
    codec.decode(array, data, rows, folder.where(entry.key))
    return None
