"""The rows of a Parquet file, a few at a time."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from specpipe.schemas.errors import ConfigError, InputError, SpecpipeError
from specpipe.schemas.sample import Source
from specpipe.stages.dump.input_files import InputFile
from specpipe.stages.dump.input_stream import StoreFile
from specpipe.stages.dump.json_rows import parse_json

INTEGERS = ("input_ids", "attention_mask", "labels")
OBJECTS = ("messages", "tools")
TEXT = "text"

_ROWS_AT_A_TIME = 64
_BUFFER_BYTES = 1 << 20


def parquet_rows(file: InputFile) -> Iterator[tuple[Source, Callable[[], dict[str, Any]]]]:
    """Where each row stands (1-based), and what reads it or raises InputError.

    Only the columns that a sample can have are read. Raises InputError where the file is no
    Parquet file, is truncated or damaged, or has none of these columns.
    """
    if file.compression is not None:
        raise ConfigError(f"data {file.name}: Parquet is compressed inside; unpack the file")
    number = 0
    try:
        with StoreFile(file) as stored:
            # By default pyarrow reads all that is asked for ahead: the whole file.
            parquet = pq.ParquetFile(
                stored,
                pre_buffer=False,
                buffer_size=_BUFFER_BYTES,
                page_checksum_verification=True,
            )
            columns = [
                name for name in parquet.schema_arrow.names if name in (*INTEGERS, *OBJECTS, TEXT)
            ]
            if len(set(columns)) < len(columns):
                raise InputError(f"{file.name}: two columns have the same name: {columns}")
            if not columns:
                raise InputError(
                    f"{file.name}: no column is named messages, text or input_ids, but: "
                    f"{', '.join(parquet.schema_arrow.names[:10])}"
                )
            for batch in parquet.iter_batches(_ROWS_AT_A_TIME, columns=columns, use_threads=False):
                for at in range(batch.num_rows):
                    number += 1
                    source = Source(file.name, number)
                    yield source, partial(_row, batch, at, source)
    except SpecpipeError:
        raise
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(
            f"{file.name}: not a readable Parquet file: it is truncated or damaged after row "
            f"{number} ({error})"
        ) from error


def _row(batch: Any, at: int, source: Source) -> dict[str, Any]:
    """The row's values by column; those that are null are left out."""
    row = {}
    for name in batch.schema.names:
        cell = batch.column(name)[at]
        if not cell.is_valid:
            continue
        where = f"{source}: column {name!r}"
        if name in INTEGERS:
            row[name] = _integers(cell, where)
        elif name in OBJECTS:
            row[name] = _objects(cell, where)
        else:
            row[name] = _python(cell, where)
    return row


def _integers(cell: Any, where: str) -> Any:
    """A list of integers as an int64 array."""
    values = getattr(cell, "values", None)
    if not isinstance(values, pa.Array) or not pa.types.is_integer(values.type):
        raise InputError(f"{where} holds {cell.type}, not lists of integers")
    if values.null_count:
        raise InputError(f"{where} holds a null among its integers")
    try:
        return values.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise InputError(f"{where} holds a number beyond 64 bits") from error


def _objects(cell: Any, where: str) -> Any:
    """Lists of structs, or the JSON text of a list."""
    value = _python(cell, where)
    return parse_json(value, where) if isinstance(value, str) else _without_nulls(value)


def _python(cell: Any, where: str) -> Any:
    try:
        return cell.as_py(maps_as_pydicts="strict")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8") from error
    except (KeyError, ValueError) as error:
        raise InputError(f"{where} holds a map with a key that stands twice ({error})") from error


def _without_nulls(value: Any) -> Any:
    """A column of structs has every key in every row: what is null was not there."""
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return value
