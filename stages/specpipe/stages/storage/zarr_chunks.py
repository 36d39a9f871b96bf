"""Chunks of Zarr v3 arrays: raw rows, or a Blosc frame of them, and a crc32c after it."""

import json
import struct
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from specpipe.schemas.dump import CHUNK_TRAILER_BYTES
from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.stages.storage.arrays import ArrayLayout
from specpipe.stages.storage.chunk_codec import Buffer, EncodedChunk
from specpipe.stages.storage.crc import crc32c
from specpipe.stages.storage.folder import HOW_TO_REPAIR

ATTRIBUTE = "specpipe_dtype"

_LEVEL = 1
_BITSHUFFLE = 2
_AUTO_BLOCKS = 0
_BLOSC_OVERHEAD = 16

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

    def metadata(self, arrays: Mapping[str, ArrayLayout]) -> dict[str, bytes]:
        documents: dict[str, dict[str, Any]] = {
            f"{self.group}/zarr.json": {"attributes": {}, "zarr_format": 3, "node_type": "group"}
        }
        for name, array in arrays.items():
            documents[f"{self.group}/{name}/zarr.json"] = self._array_metadata(array)
        return {key: json.dumps(value, indent=2).encode() for key, value in documents.items()}

    def _array_metadata(self, array: ArrayLayout) -> dict[str, Any]:
        blosc = {
            "typesize": array.dtype.itemsize,
            "cname": "zstd",
            "clevel": _LEVEL,
            "shuffle": "bitshuffle",
            "blocksize": _AUTO_BLOCKS,
        }
        one_byte = array.dtype.itemsize == 1
        codecs: list[dict[str, Any]] = [
            {"name": "bytes"} | ({} if one_byte else {"configuration": {"endian": "little"}}),
            *([] if self.is_raw else [{"name": "blosc", "configuration": blosc}]),
            {"name": "crc32c"},
        ]
        return {
            "shape": array.shape,
            "data_type": array.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": (array.chunk_rows, *array.row_shape)},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if array.dtype.kind == "f" else 0,
            "codecs": codecs,
            "attributes": {ATTRIBUTE: "bfloat16"} if array.is_bfloat16 else {},
            "dimension_names": array.dimensions,
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }


def describes_the_same(stored: bytes, written: bytes) -> bool:
    """Whether a stored zarr.json means what `written` does, whoever wrote it."""
    try:
        return _essence(json.loads(stored)) == _essence(json.loads(written))
    except (ValueError, AttributeError, TypeError):
        return False


def _essence(metadata: dict[str, Any]) -> list[Any]:
    codecs = [codec.get("name") for codec in metadata.get("codecs", [])]
    return [codecs, *(metadata.get(field) for field in _FIELDS)]


def _no_chunk(array: ArrayLayout, where: str) -> IntegrityError:
    return IntegrityError(
        f"{where} is no Blosc frame of {array.payload_bytes} bytes, as the manifest has it; "
        f"{HOW_TO_REPAIR}"
    )
