"""Tables of a dump that are small enough to be read whole: the rows of samples, the statistics of
tokens. (The arrays of a shard are in parquet_chunks.py.)
"""

import io
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from specpipe.schemas.errors import IntegrityError


def encode_table(table: Any, compression: Literal["snappy", "zstd"] = "snappy") -> bytes:
    """A pyarrow Table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression)
    return buffer.getvalue()


def decode_table(data: bytes, schema: Any, where: str) -> Any:
    """The pyarrow Table in the bytes of a Parquet file, without nulls.

    Raises IntegrityError, naming `where`, if it is none or has other columns than `schema`.
    """
    try:
        # Not pq.read_table: its scanner drops `data` later, on a thread of its own, and a process
        # in which tracemalloc stops at that moment crashes.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{where} is no readable Parquet file: {error}") from None
    if not table.schema.equals(schema) or any(column.null_count for column in table.columns):
        raise IntegrityError(f"{where} does not have the columns {schema.names}")
    return table
