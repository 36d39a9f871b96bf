"""Tables of a dump that are small enough to be kept whole: the rows of samples, the statistics of
tokens. (The arrays of a shard are in chunks/parquet_format.py, reading is in
untrusted/parquet.py.)
"""

import io
from typing import Any, Literal

import pyarrow.parquet as pq


def encode_table(table: Any, compression: Literal["snappy", "zstd"] = "snappy") -> bytes:
    """A pyarrow Table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression)
    return buffer.getvalue()
