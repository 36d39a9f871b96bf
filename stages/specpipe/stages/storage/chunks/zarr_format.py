"""Chunks of Zarr v3 arrays: raw rows, or a Blosc frame of them, and a crc32c after it."""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.records.dump import CHUNK_TRAILER_BYTES
from specpipe.stages.storage.chunks.arrays import ArrayLayout
from specpipe.stages.storage.chunks.codec import Buffer, EncodedChunk
from specpipe.stages.storage.store.crc import crc32c
from specpipe.stages.storage.store.folder import HOW_TO_REPAIR
from specpipe.stages.untrusted.json_text import parse_object

ATTRIBUTE = "specpipe_dtype"

_LEVEL = 1
_BITSHUFFLE = 2
_AUTO_BLOCKS = 0
_BLOSC_OVERHEAD = 16
_DOCUMENT = "zarr.json"

# What a reader of another library goes by.
_FIELDS = ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "attributes")


class ZarrChunks:
    """Codecs `bytes`, `crc32c`; with compression `bytes`, `blosc` (zstd), `crc32c`."""

    group = "states.zarr"

    def __init__(self, compression: Literal["none", "zstd"]) -> None:
        self.is_raw = compression == "none"

    def chunk_name(self, array: ArrayLayout, index: int) -> str:
        return f"{self.group}/{array.name}/c/{index}" + "/0" * len(array.row_shape)

    def extra_bytes(self, array: ArrayLayout) -> int:
        return 0 if self.is_raw else array.payload_bytes + _BLOSC_OVERHEAD

    def encode(self, array: ArrayLayout, chunk: Buffer, num_bytes: int, crc: int) -> EncodedChunk:
        payload, trailer = chunk[:-CHUNK_TRAILER_BYTES], chunk[-CHUNK_TRAILER_BYTES:]
        payload[num_bytes:] = 0
        if self.is_raw:
            crc = crc32c(payload[num_bytes:], crc)
            trailer[:] = np.array([crc], "<u4").view(np.uint8)
            return EncodedChunk(chunk.data, crc, CHUNK_TRAILER_BYTES)
        from numcodecs import blosc

        if len(payload) > blosc.MAX_BUFFERSIZE:
            raise ConfigError(
                f"a chunk of {len(payload)} bytes is more than Blosc compresses: set fewer "
                "--chunk-tokens"
            )
        # Called from a thread of ours, Blosc uses no threads of its own, whose blocks would come in
        # any order: the same rows always give the same frame.
        frame: bytes = blosc.compress(
            payload, b"zstd", _LEVEL, _BITSHUFFLE, _AUTO_BLOCKS, array.dtype.itemsize
        )
        crc = crc32c(frame)
        return EncodedChunk(frame + crc.to_bytes(4, "little"), crc, CHUNK_TRAILER_BYTES)

    def decode(self, array: ArrayLayout, data: memoryview, rows: Buffer, where: str) -> None:
        from numcodecs import blosc

        # Blosc goes by the sizes in its header.
        if len(data) < _BLOSC_OVERHEAD:
            raise _no_chunk(array, where)
        num_bytes, _, frame_bytes = struct.unpack_from("<3I", data, 4)
        if (num_bytes, frame_bytes) != (array.payload_bytes, len(data)):
            raise _no_chunk(array, where)
        is_full = len(rows) == num_bytes
        payload = rows if is_full else np.empty(num_bytes, np.uint8)
        try:
            blosc.decompress(data, payload)
        except (ValueError, RuntimeError):
            raise _no_chunk(array, where) from None
        if not is_full:
            rows[:] = payload[: len(rows)]

    def metadata_names(self, arrays: Iterable[str]) -> list[str]:
        return [f"{self.group}/{_DOCUMENT}", *(f"{self.group}/{a}/{_DOCUMENT}" for a in arrays)]

    def metadata(self, arrays: Mapping[str, ArrayLayout]) -> dict[str, bytes]:
        written = [_group(), *(_array(replace(a, name=""), self.is_raw) for a in arrays.values())]
        return dict(zip(self.metadata_names(arrays), written, strict=True))


@cache
def _group() -> bytes:
    """zarr.json of a group, by zarr-python."""
    import zarr
    from zarr.storage import MemoryStore

    written: dict[str, Any] = {}
    zarr.create_group(MemoryStore(written), zarr_format=3)
    return bytes(written[_DOCUMENT].to_bytes())


@lru_cache(maxsize=64)
def _array(array: ArrayLayout, is_raw: bool) -> bytes:
    """zarr.json of an array, by zarr-python: its name is not in it."""
    import zarr
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    blosc = BloscCodec(
        typesize=array.dtype.itemsize,
        cname="zstd",
        clevel=_LEVEL,
        shuffle="bitshuffle",
        blocksize=_AUTO_BLOCKS,
    )
    written: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(written),
        shape=array.shape,
        chunks=(array.chunk_rows, *array.row_shape),
        dtype=array.dtype,
        fill_value=0,
        filters=(),
        serializer=BytesCodec(),
        compressors=[Crc32cCodec()] if is_raw else [blosc, Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "/"},
        dimension_names=array.dimensions,
        attributes={ATTRIBUTE: "bfloat16"} if array.is_bfloat16 else {},
        zarr_format=3,
    )
    return bytes(written[_DOCUMENT].to_bytes())


def describes_the_same(stored: bytes, written: bytes) -> bool:
    """Whether a stored zarr.json means what `written` does, whoever wrote it."""
    try:
        return _essence(parse_object(stored, "")) == _essence(parse_object(written, ""))
    except (IntegrityError, AttributeError, TypeError):
        return False


def _essence(metadata: dict[str, Any]) -> list[Any]:
    codecs = [codec.get("name") for codec in metadata.get("codecs", [])]
    return [codecs, *(metadata.get(field) for field in _FIELDS)]


def _no_chunk(array: ArrayLayout, where: str) -> IntegrityError:
    return IntegrityError(
        f"{where} is no Blosc frame of {array.payload_bytes} bytes, as the manifest has it; "
        f"{HOW_TO_REPAIR}"
    )
