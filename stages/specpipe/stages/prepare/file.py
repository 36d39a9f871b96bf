"""Pretokenised samples as a local file: JSONL, as it is or compressed, or Parquet.

Legend: T tokens.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.location import without_credentials
from specpipe.schemas.records.sample import IGNORE_LABEL, Ids, Sample

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")

_SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("attention_mask", pa.list_(pa.int8())),
        pa.field("labels", pa.list_(pa.int32())),
    ]
)
_GROUP_ROWS = 1024
"""Rows that are held in memory to be written at a time."""


def check_suffix(out: str) -> None:
    """Raise ConfigError unless the file's name says which of the formats it is to have."""
    if not out.lower().endswith(SUFFIXES) or out.rpartition("/")[2].startswith("."):
        raise ConfigError(
            f"--out {without_credentials(out)}: its name must end in {', '.join(SUFFIXES[:-1])} or "
            f"{SUFFIXES[-1]}, and be more than that"
        )


def write_samples(path: Path, samples: Iterable[Sample]) -> Path:
    """Write the samples in the format of the path's suffix; returns the path. Raises OSError."""
    if path.name.lower().endswith(".parquet"):
        with pq.ParquetWriter(path, _SCHEMA, compression="zstd", write_page_checksum=True) as file:
            rest = iter(samples)
            while group := list(islice(rest, _GROUP_ROWS)):
                file.write_table(_table(group))
        return path
    with path.open("wb") as raw, _compressed(raw, path.name.lower()) as file:
        for sample in samples:
            row = {
                "input_ids": sample.input_ids.tolist(),
                "attention_mask": [1] * sample.num_tokens,
                "labels": _labels(sample).tolist(),
            }
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    return path


@contextmanager
def _compressed(raw: BinaryIO, name: str) -> Iterator[BinaryIO]:
    if name.endswith(".gz"):
        # Without name and time: the same samples make the same bytes.
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
            yield file  # type: ignore[misc]
    elif name.endswith(".zst"):
        with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as file:
            yield file
    else:
        yield raw


def _table(samples: Sequence[Sample]) -> pa.Table:
    columns = [
        [sample.input_ids for sample in samples],
        [np.ones(sample.num_tokens, np.int8) for sample in samples],
        [_labels(sample) for sample in samples],
    ]
    return pa.table(
        [pa.array(column, type=f.type) for column, f in zip(columns, _SCHEMA, strict=True)],
        schema=_SCHEMA,
    )


def _labels(sample: Sample) -> Ids:
    """int32 [T]: the token where it is supervised, else -100."""
    return np.where(sample.loss_mask == 1, sample.input_ids, np.int32(IGNORE_LABEL))
