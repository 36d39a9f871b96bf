"""The rows of a Parquet file, a few at a time."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.schemas.records.sample import Source
from specpipe.stages.text.chat.nulls import without_nulls
from specpipe.stages.text.chat.template_settings import SETTINGS_FIELD
from specpipe.stages.text.input.files import InputFile
from specpipe.stages.text.input.stream import StoreFile
from specpipe.stages.untrusted.json_text import parse_json
from specpipe.stages.untrusted.parquet import ParquetRows

_PRETOKENIZED = ("input_ids", "attention_mask", "labels")
_FORMS: tuple[tuple[str, ...], ...] = (
    ("messages", "tools", SETTINGS_FIELD),
    _PRETOKENIZED,
    ("text",),
)
_OTHER_FORMS: tuple[tuple[str, ...], ...] = (
    ("conversations", "system", "tools", SETTINGS_FIELD),
    ("prompt", "completion", "tools", SETTINGS_FIELD),
)
"""For files without any of the forms above; the first column of a form is what makes a row."""
RENAME = "rename them (docs/quickstart.md has the forms of a row)"

_JSON_TEXTS = ("messages", "conversations")


def parquet_rows(file: InputFile) -> Iterator[tuple[Source, Callable[[], dict[str, Any]]]]:
    """Where each row stands (1-based), and what reads it or raises InputError.

    Only the columns that a sample can have are read. Raises InputError where the file is no
    Parquet file, is truncated or damaged, holds too much in a few bytes, or has none of these
    columns.
    """
    if file.compression is not None:
        raise ConfigError(f"data {file.name}: Parquet is compressed inside; unpack the file")
    with StoreFile(file) as stored:
        rows = ParquetRows(stored, file.name, InputError)
        for batch in rows.batches(_columns(rows.names, file.name)):
            for at in range(batch.num_rows):
                source = Source(file.name, rows.num_read + at + 1)
                yield source, partial(_row, batch, at, source)


def _columns(names: Sequence[str], file: str) -> list[str]:
    """The columns to be read, in the file's order; raises InputError."""
    forms = [form for form in _FORMS if form[0] in names]
    forms = forms or [form for form in _OTHER_FORMS if form[0] in names]
    if not forms:
        raise InputError(
            f"{file}: no column is named messages, text or input_ids, conversations or prompt, "
            f"but: {', '.join(names[:10])}; {RENAME}"
        )
    columns = [name for name in names if any(name in form for form in forms)]
    if len(set(columns)) < len(columns):
        raise InputError(f"{file}: two columns have the same name: {columns}")
    return columns


def _row(batch: Any, at: int, source: Source) -> dict[str, Any]:
    """The row's values by column; those that are null are left out."""
    row = {}
    for name in batch.schema.names:
        cell = batch.column(name)[at]
        if not cell.is_valid:
            continue
        where = f"{source}: column {name!r}"
        if name in _PRETOKENIZED:
            row[name] = _integers(cell, where)
            continue
        value = _python(cell, where)
        if name in _JSON_TEXTS and isinstance(value, str):
            row[name] = parse_json(value, where, InputError)
        else:
            # A column of structs has every key in every row: what is null was not there.
            row[name] = without_nulls(value)
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


def _python(cell: Any, where: str) -> Any:
    try:
        return cell.as_py(maps_as_pydicts="strict")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8") from error
    except (KeyError, ValueError) as error:
        raise InputError(f"{where} holds a map with a key that stands twice ({error})") from error
