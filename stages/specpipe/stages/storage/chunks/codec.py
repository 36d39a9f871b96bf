"""A chunk of an array is one object, whatever the format of the shard: rows to bytes and back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from specpipe.schemas.records.dump import CHUNK_TRAILER_BYTES, DumpIdentity
from specpipe.stages.storage.chunks.arrays import ArrayLayout

Buffer = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A stored chunk, with the figures of its entry in the manifest."""

    data: Any
    """Bytes, or whatever lends them."""
    crc32c: int
    """Of `data` without its trailer."""
    trailer_bytes: int


class ChunkCodec(Protocol):
    """How a format stores the chunks of arrays. It may be called from several threads."""

    group: str
    """Folder of all arrays of a shard."""
    is_raw: bool
    """Whether an object is its rows, padding and trailer, so that any rows can be read alone."""

    def chunk_name(self, array: ArrayLayout, index: int) -> str:
        """Key of a chunk, relative to the shard's folder."""

    def extra_bytes(self, array: ArrayLayout) -> int:
        """Most bytes that an encoded chunk takes beside the buffer that it was encoded from."""

    def encode(self, array: ArrayLayout, chunk: Buffer, num_bytes: int, crc: int) -> EncodedChunk:
        """`chunk` is a buffer of `buffer_bytes(array)` whose first `num_bytes` are the rows, `crc`
        their crc32c. The rest of the buffer may be written to, and may become the chunk's."""

    def decode(self, array: ArrayLayout, data: memoryview, rows: Buffer, where: str) -> None:
        """Fill `rows`, those of one chunk, from what is stored without its trailer.

        Allocates nothing that `rows` does not warrant. Raises IntegrityError, naming `where`, if
        the data is no such chunk.
        """

    def metadata_names(self, arrays: Iterable[str]) -> list[str]:
        """Keys of `metadata`, by the names of the arrays."""

    def metadata(self, arrays: Mapping[str, ArrayLayout]) -> dict[str, bytes]:
        """Objects that say what the arrays are, by their keys relative to the shard's folder."""


def buffer_bytes(array: ArrayLayout) -> int:
    """Size of the buffer that a chunk is collected in: its rows, and room for a trailer."""
    return array.payload_bytes + CHUNK_TRAILER_BYTES


def chunk_codec(identity: DumpIdentity) -> ChunkCodec:
    """What stores the chunks of such a dump."""
    if identity.shard_format == "parquet":
        from specpipe.stages.storage.chunks.parquet_format import ParquetChunks

        return ParquetChunks(identity.compression)
    from specpipe.stages.storage.chunks.zarr_format import ZarrChunks

    return ZarrChunks(identity.compression)
