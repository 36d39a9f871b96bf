"""Chunks of arrays as Parquet files of one column; the files of an array are a dataset to Arrow."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.chunks.arrays import ArrayLayout
from specpipe.stages.storage.chunks.codec import Buffer, EncodedChunk
from specpipe.stages.storage.store.crc import crc32c
from specpipe.stages.storage.store.folder import HOW_TO_REPAIR
from specpipe.stages.untrusted.parquet_pages import check_pages

_LEVEL = 1
_PAGE_BYTES = 2**26
_BATCH_BYTES = 2**21
"""Rows that are decoded before they are copied: as many as stay in the cache."""
_MARGIN = 2**16
"""Bytes of a file that are not rows: headers of pages and the footer."""
_SCALARS = {"float32": pa.float32(), "int32": pa.int32()}


class ParquetChunks:
    """A column of fixed-size binary values, a row of the array each; plain numbers where a row is
    one number. No dictionary, no statistics, one row group."""

    group = "states.parquet"
    is_raw = False

    def __init__(self, compression: Literal["none", "zstd"]) -> None:
        self._compression = compression

    def chunk_name(self, array: ArrayLayout, index: int) -> str:
        return f"{self.group}/{array.name}/{index:06d}.parquet"

    def extra_bytes(self, array: ArrayLayout) -> int:
        # Arrow collects a page before it appends it to the file.
        return 2 * array.payload_bytes + _MARGIN

    def encode(self, array: ArrayLayout, chunk: Buffer, num_bytes: int, crc: int) -> EncodedChunk:
        schema = array_schema(array)
        num_rows = num_bytes // array.row_bytes
        values = pa.Array.from_buffers(
            schema.field(0).type, num_rows, [None, pa.py_buffer(chunk[:num_bytes])]
        )
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.Table.from_arrays([values], schema=schema),
            sink,
            row_group_size=num_rows,
            use_dictionary=False,
            write_statistics=False,
            compression=self._compression,
            compression_level=_LEVEL if self._compression == "zstd" else None,
            data_page_size=_PAGE_BYTES,
        )
        data = memoryview(sink.getvalue())
        return EncodedChunk(data, crc32c(data), 0)

    def decode(self, array: ArrayLayout, data: memoryview, rows: Buffer, where: str) -> None:
        num_rows = len(rows) // array.row_bytes
        try:
            file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(data)))
            # Before anything is decompressed: the counts may be of anything.
            is_whole = _fits(file, data, array, num_rows) and _copy(file, array, rows) == len(rows)
        except (pa.ArrowException, OSError, ValueError):  # a name that is not UTF-8 among it
            is_whole = False
        if not is_whole:
            raise IntegrityError(
                f"{where} is no Parquet file of {num_rows} rows of {array.name}, as the manifest "
                f"has it; {HOW_TO_REPAIR}"
            )

    def metadata_names(self, arrays: Iterable[str]) -> list[str]:
        return []

    def metadata(self, arrays: Mapping[str, ArrayLayout]) -> dict[str, bytes]:
        return {}


def array_schema(array: ArrayLayout) -> Any:
    """Arrow's schema of each file of an array."""
    values = pa.binary(array.row_bytes) if array.row_shape else _SCALARS[array.dtype.name]
    about = {
        "specpipe_dtype": "bfloat16" if array.is_bfloat16 else array.dtype.name,
        "specpipe_shape": ",".join(map(str, array.row_shape)),
    }
    return pa.schema([pa.field(array.name, values, nullable=False, metadata=about)])


def _copy(file: Any, array: ArrayLayout, rows: Buffer) -> int:
    """Copy the rows of a file to where they belong; returns their bytes."""
    at = 0
    batch_size = max(1, _BATCH_BYTES // array.row_bytes)
    for batch in file.iter_batches(batch_size=batch_size, use_threads=False):
        column = batch.column(0)
        start, size = column.offset * array.row_bytes, len(column) * array.row_bytes
        if column.null_count or at + size > len(rows):
            return -1
        rows[at : at + size] = np.frombuffer(column.buffers()[1], np.uint8)[start:][:size]
        at += size
    return at


def _fits(file: Any, data: memoryview, array: ArrayLayout, num_rows: int) -> bool:
    """Whether a file has one group of so many rows of the array, and pages of no more bytes.

    Raises PageError where the pages claim other values or sizes than the footer.
    """
    footer = file.metadata
    if not file.schema_arrow.equals(array_schema(array), check_metadata=True):
        return False
    if (footer.num_rows, footer.num_row_groups) != (num_rows, 1):
        return False
    column = footer.row_group(0).column(0)
    if column.total_uncompressed_size > num_rows * array.row_bytes + _MARGIN:
        return False
    check_pages(data, column)
    return True
