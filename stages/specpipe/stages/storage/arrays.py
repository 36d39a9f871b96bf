"""The arrays of a shard: shapes, dtypes, chunks, and their Zarr v3 metadata.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from specpipe.schemas.dump import (
    CHUNK_TRAILER_BYTES,
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpIdentity,
    ObjectEntry,
    ShardManifest,
    chunk_rows,
)
from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.states import bfloat16_is_finite

STATES_GROUP = "states.zarr"
ATTRIBUTE = "specpipe_dtype"


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """One array of a shard: `num_rows` rows along its first axis, in chunks of `chunk_rows`."""

    name: str
    num_rows: int
    chunk_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dimensions: tuple[str, ...]

    @property
    def is_bfloat16(self) -> bool:
        return self.dtype == np.uint16

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def payload_bytes(self) -> int:
        """Bytes of every chunk's rows; the last chunk is padded with zeros."""
        return self.chunk_rows * self.row_bytes

    @property
    def chunk_bytes(self) -> int:
        """Size of every chunk object: the payload and its trailer."""
        return self.payload_bytes + CHUNK_TRAILER_BYTES

    @property
    def chunk_starts(self) -> range:
        """Where each chunk's rows begin in the array's bytes."""
        return range(0, self.num_rows * self.row_bytes, self.payload_bytes)

    @property
    def num_chunks(self) -> int:
        return -(-self.num_rows // self.chunk_rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_rows, *self.row_shape)

    def chunk_name(self, index: int) -> str:
        """Key of a chunk, relative to the shard's folder."""
        return f"{STATES_GROUP}/{self.name}/c/{index}" + "/0" * len(self.row_shape)

    def chunks_of(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(chunk, first row, last row + 1) of the pieces into which chunks cut [start, stop)."""
        while start < stop:
            index = start // self.chunk_rows
            end = min(stop, (index + 1) * self.chunk_rows)
            yield index, start, end
            start = end


def shard_arrays(
    identity: DumpIdentity, num_tokens: int, num_rows: int, token_chunk: int, row_chunk: int
) -> dict[str, ArrayLayout]:
    """The arrays of a shard of `num_tokens` tokens and `num_rows` verifier rows."""
    num_layers, hidden = len(identity.layers), identity.target.hidden_size
    u16, f32, i32 = (np.dtype(name).newbyteorder("<") for name in ("u2", "f4", "i4"))
    rows = ("row",)
    arrays = (
        ArrayLayout(
            "aux", num_tokens, token_chunk, (num_layers, hidden), u16, ("token", "layer", "hidden")
        ),
        ArrayLayout("final", num_rows, row_chunk, (hidden,), u16, ("row", "hidden")),
        ArrayLayout("logz", num_rows, row_chunk, (), f32, rows),
        ArrayLayout("token_logprob", num_rows, row_chunk, (), f32, rows),
        ArrayLayout("argmax", num_rows, row_chunk, (), i32, rows),
    )
    return {array.name: array for array in arrays}


def planned_chunks(
    identity: DumpIdentity, planned_tokens: int, planned_rows: int
) -> tuple[int, int]:
    """Rows of a chunk along the token axis and along the verifier-row axis.

    A verifier row is L times smaller than a token's aux states, so its chunks hold L times more.
    """
    most = identity.chunk_tokens
    return (
        chunk_rows(planned_tokens, most),
        chunk_rows(planned_rows, most * len(identity.layers)),
    )


def shard_entries(manifest: ShardManifest) -> dict[str, ObjectEntry]:
    """The manifest's objects by their keys relative to the shard's folder."""
    start = len(manifest.folder) + 1
    return {entry.key[start:]: entry for entry in manifest.objects}


def listed_arrays(
    identity: DumpIdentity, manifest: ShardManifest, where: str
) -> dict[str, ArrayLayout]:
    """The arrays of a committed shard, their chunk sizes taken from the sizes of the chunk objects.

    Raises IntegrityError if the manifest does not list exactly the objects of such a shard.
    """
    entries = shard_entries(manifest)
    unit = shard_arrays(identity, manifest.num_tokens, manifest.num_rows, 1, 1)
    token_chunk = _listed_chunk_rows(unit["aux"], entries, where)
    row_chunk = _listed_chunk_rows(unit["final"], entries, where)
    arrays = shard_arrays(identity, manifest.num_tokens, manifest.num_rows, token_chunk, row_chunk)
    # Before the chunks are named one by one: the counts may be of anything.
    num_chunks = sum(array.num_chunks for array in arrays.values())
    if num_chunks > len(entries):
        raise IntegrityError(
            f"the manifest of {where} counts {manifest.num_tokens} tokens and {manifest.num_rows} "
            f"verifier rows, which take {num_chunks} chunks, but lists {len(entries)} objects"
        )
    chunks = {a.chunk_name(i): a.chunk_bytes for a in arrays.values() for i in range(a.num_chunks)}
    metadata = [STATES_GROUP, *(f"{STATES_GROUP}/{name}" for name in arrays)]
    names = {SAMPLES_FILE, VOCAB_FILE, *chunks, *(f"{name}/zarr.json" for name in metadata)}
    if wrong := sorted(names ^ entries.keys()):
        what = "does not list" if wrong[0] in names else "lists a foreign object,"
        raise IntegrityError(f"the manifest of {where} {what} {wrong[0]}")
    for name, size in chunks.items():
        if entries[name].size != size or not entries[name].trailer_bytes:
            raise IntegrityError(
                f"the manifest of {where} gives {name} {entries[name].size} bytes, not {size}"
            )
    return arrays


def _listed_chunk_rows(array: ArrayLayout, entries: dict[str, ObjectEntry], where: str) -> int:
    if array.num_rows == 0:
        return 1
    first = entries.get(array.chunk_name(0))
    if first is None:
        raise IntegrityError(f"the manifest of {where} does not list {array.chunk_name(0)}")
    return max(1, (first.size - CHUNK_TRAILER_BYTES) // array.row_bytes)


def values_problem(array: ArrayLayout, values: npt.NDArray[Any], vocab_size: int) -> str | None:
    """What no crc shows: values that no target can have produced. None if all is well."""
    if len(values) == 0:
        return None
    if array.is_bfloat16:
        finite = bfloat16_is_finite(values)
    elif values.dtype.kind == "f":
        finite = bool(np.isfinite(values).all())
    else:
        inside = values.min() >= 0 and values.max() < vocab_size
        return None if inside else f"holds a token id outside the vocabulary of {vocab_size}"
    return None if finite else "holds a value that is infinite or not a number"


def zarr_metadata(arrays: dict[str, ArrayLayout]) -> dict[str, bytes]:
    """Every zarr.json of a shard by its key relative to the shard's folder, from zarr-python."""
    objects: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(objects), zarr_format=3)
    for array in arrays.values():
        group.create_array(
            array.name,
            shape=array.shape,
            chunks=(array.chunk_rows, *array.row_shape),
            dtype=array.dtype,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=0,
            attributes={ATTRIBUTE: "bfloat16"} if array.is_bfloat16 else {},
            dimension_names=array.dimensions,
        )
    return {f"{STATES_GROUP}/{key}": value.to_bytes() for key, value in sorted(objects.items())}
