"""The arrays of a shard: shapes, dtypes, chunks.

Legend: T tokens, S verifier rows, L aux layers, H hidden, K kept logits, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specpipe.schemas.records.dump import DumpIdentity, equal_chunks
from specpipe.stages.storage.shard.states import bfloat16_is_finite

AUX_SCALE = "aux_scale"
"""int8 states: the scale of each token in each layer."""


def aux_array(layer: int) -> str:
    """The array of one auxiliary layer: who needs some layers reads no others."""
    return f"aux_{layer}"


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
        """Bytes of the rows of a full chunk."""
        return self.chunk_rows * self.row_bytes

    @property
    def num_chunks(self) -> int:
        return -(-self.num_rows // self.chunk_rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_rows, *self.row_shape)

    def bytes_in(self, index: int) -> int:
        """Bytes of the rows of a chunk, without padding."""
        rows = min(self.chunk_rows, self.num_rows - index * self.chunk_rows)
        return rows * self.row_bytes

    def chunks_of(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(chunk, first row, last row + 1) of the pieces into which chunks cut [start, stop)."""
        while start < stop:
            index = start // self.chunk_rows
            end = min(stop, (index + 1) * self.chunk_rows)
            yield index, start, end
            start = end


def shard_arrays(
    identity: DumpIdentity, num_tokens: int, num_rows: int, chunk_rows: Mapping[str, int]
) -> dict[str, ArrayLayout]:
    """The arrays of a shard of `num_tokens` tokens and `num_rows` verifier rows."""
    counts = {"token": num_tokens, "row": num_rows}
    return {
        name: ArrayLayout(name, counts[dims[0]], chunk_rows[name], shape, np.dtype(dtype), dims)
        for name, shape, dtype, dims in _arrays(identity)
    }


def array_names(identity: DumpIdentity) -> tuple[str, ...]:
    """The arrays of every shard of a dump, in the order of their columns in samples.parquet."""
    return tuple(name for name, *_ in _arrays(identity))


def verifier_row_bytes(identity: DumpIdentity) -> int:
    """Bytes of all that is stored of one verifier row."""
    arrays = shard_arrays(identity, 0, 0, dict.fromkeys(array_names(identity), 1)).values()
    return sum(array.row_bytes for array in arrays if array.dimensions[0] == "row")


def most_chunk_rows(identity: DumpIdentity) -> dict[str, int]:
    """Most rows of a chunk of each array: as many bytes as `chunk_tokens` rows of a layer have."""
    unit = shard_arrays(identity, 0, 0, dict.fromkeys(array_names(identity), 1))
    most_bytes = identity.chunk_tokens * unit[aux_array(identity.layers[0])].row_bytes
    return {name: max(1, most_bytes // array.row_bytes) for name, array in unit.items()}


def planned_chunks(
    identity: DumpIdentity, planned_tokens: int, planned_rows: int
) -> dict[str, int]:
    """Rows of a chunk of each array of a shard that is planned to have so many rows."""
    planned = {"token": planned_tokens, "row": planned_rows}
    most = most_chunk_rows(identity)
    return {
        name: equal_chunks(planned[dimensions[0]], most[name])
        for name, _, _, dimensions in _arrays(identity)
    }


def values_problem(array: ArrayLayout, values: npt.NDArray[Any], vocab_size: int) -> str | None:
    """What no crc shows: values that no target can have produced. None if all is well."""
    if len(values) == 0 or values.dtype == np.int8:
        return None
    if array.is_bfloat16:
        finite = bfloat16_is_finite(values)
    elif values.dtype.kind == "f":
        finite = bool(np.isfinite(values).all())
    else:
        inside = values.min() >= 0 and values.max() < vocab_size
        return None if inside else f"holds a token id outside the vocabulary of {vocab_size}"
    return None if finite else "holds a value that is infinite or not a number"


Array = tuple[str, tuple[int, ...], str, tuple[str, ...]]


def _arrays(identity: DumpIdentity) -> Iterator[Array]:
    """(name, shape of a row, dtype, dimensions) of each array that such a dump has."""
    hidden = identity.target.hidden_size
    aux = "<i1" if identity.states_dtype == "int8" else "<u2"
    for layer in identity.layers:
        yield aux_array(layer), (hidden,), aux, ("token", "hidden")
    if identity.states_dtype == "int8":
        yield AUX_SCALE, (len(identity.layers),), "<f4", ("token", "layer")
    if identity.logits == "final":
        yield "final", (hidden,), "<u2", ("row", "hidden")
    elif identity.logits == "full":
        yield "logits", (identity.target.vocab_size,), "<u2", ("row", "token_id")
    elif identity.topk is not None:
        yield "topk_ids", (identity.topk,), "<i4", ("row", "rank")
        yield "topk_logits", (identity.topk,), "<u2", ("row", "rank")
    yield "logz", (), "<f4", ("row",)
    yield "token_logprob", (), "<f4", ("row",)
    yield "argmax", (), "<i4", ("row",)
