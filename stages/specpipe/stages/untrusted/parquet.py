"""Parquet of strangers: small tables that are read whole, and rows of files of any size.

A few bytes of Parquet can hold any number of values (runs of one value; a text of megabytes that
a dictionary holds once), so nothing is decoded before its size is known, or without a bound.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from specpipe.schemas.errors import IntegrityError, SpecpipeError
from specpipe.stages.untrusted.foreign import foreign_call
from specpipe.stages.untrusted.memory import bounded_memory
from specpipe.stages.untrusted.parquet_pages import check_pages

MOST_ROW_BYTES = 2**28
"""Bytes of a row once decoded (256 MiB), as of a line of JSONL."""

_BATCH_ROWS = 64
_BATCH_BYTES = 2**26
_BUFFER_BYTES = 2**20
_DECODING_BYTES = 2**31
"""Memory that decoding a few rows may take: their levels, pages and values."""
_OBJECT_BYTES = 64
"""Of a Python object, about: each value within a column becomes one."""
_VALUE_BYTES = 16
"""Of a stored value with its levels, at most."""
_MARGIN = 2**20


@dataclass(frozen=True, slots=True)
class TableBounds:
    """Upper bounds of a table that is read whole."""

    rows: int
    values: int
    """Of one column: the entries of all its lists, and the lists that are empty."""
    text_bytes: int = 2**26
    """Of the texts of one column, each counted as often as it stands in a row."""


def read_table(
    data: bytes,
    schema: Any,
    bounds: TableBounds,
    where: str,
    refuse: type[SpecpipeError] = IntegrityError,
) -> Any:
    """The pyarrow Table in the bytes of a Parquet file that pyarrow wrote, without nulls.

    `schema` is flat: numbers, texts, lists of numbers. Raises `refuse`, naming `where`, if the
    file holds more than `bounds`, is damaged or has other columns. All but the length of the texts
    is checked before anything is decoded, so that the memory is what `bounds` allow.
    """
    texts = [field.name for field in schema if field.type == pa.string()]
    with foreign_call(f"{where} is no readable Parquet file", refuse):
        file = pq.ParquetFile(pa.BufferReader(data))
        if not file.schema_arrow.equals(schema):
            raise refuse(f"{where} does not have the columns {schema.names}")
        _check_footer(data, file.metadata, bounds, where, refuse)
        # A text that many rows share stays one text until all are counted.
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
        # Not pq.read_table: its scanner drops `data` later, on a thread of its own, and a process
        # in which tracemalloc stops at that moment crashes.
        table = file.read(use_threads=False)
        for name in texts:
            text_bytes = sum(map(_text_bytes, table.column(name).chunks))
            if text_bytes > bounds.text_bytes:
                raise refuse(
                    f"{where} holds {text_bytes} bytes of {name}, more than {bounds.text_bytes}"
                )
        columns = [column.cast(field.type) for column, field in zip(table, schema, strict=True)]
        table = pa.table(columns, schema=schema)
        table.validate(full=True)  # UTF-8 among it
        if any(column.null_count for column in columns):
            raise refuse(f"{where} has a null in the columns {schema.names}")
    return table


class ParquetRows:
    """Rows of a Parquet file of any origin and size, a few at a time.

        rows = ParquetRows(file, "data.parquet", InputError)
        rows.names                          # of the columns, as the file has them
        for batch in rows.batches(["messages"]):  # pyarrow RecordBatches of 1 to 64 rows
            batch.column(0)[at].as_py()

    `file` is a seekable binary file; errors of the tree that its reads raise pass through. Every
    other failure is raised as `refuse`, naming `where`, from the constructor too: no Parquet,
    truncated, damaged, names that are not UTF-8, rows whose decoding takes more than 2 GiB of
    memory, or one that holds more than 256 MiB. What comes in a batch is safe to turn into Python
    objects row by row; texts in it may still not be UTF-8 (`as_py` raises UnicodeDecodeError).
    """

    def __init__(self, file: Any, where: str, refuse: type[SpecpipeError]) -> None:
        self._where = where
        self._refuse = refuse
        self.num_read = 0
        """Rows of the batches before the one that was handed over last."""
        with self._reading():
            # By default pyarrow reads all that is asked for ahead: the whole file.
            self._parquet = pq.ParquetFile(
                file, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
            )
            self.names: list[str] = list(self._parquet.schema_arrow.names)

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """RecordBatches of the named columns, in the file's order."""
        for group in range(self._parquet.num_row_groups):
            with self._reading():
                batches = self._parquet.iter_batches(
                    self._rows_at_a_time(group),
                    row_groups=[group],
                    columns=list(columns),
                    use_threads=False,
                )
            while (batch := self._next(batches)) is not None:
                yield batch
                self.num_read += batch.num_rows

    def _next(self, batches: Iterator[Any]) -> Any:
        with self._reading():
            batch = next(batches, None)
            if batch is not None and _held_bytes(batch) > MOST_ROW_BYTES:
                self._check_rows(batch)
        return batch

    def _check_rows(self, batch: Any) -> None:
        for at in range(batch.num_rows):
            if _held_bytes(batch.slice(at, 1)) > MOST_ROW_BYTES:
                raise self._refuse(
                    f"{self._where}: row {self.num_read + at + 1} holds more than "
                    f"{MOST_ROW_BYTES} bytes once decoded"
                )

    def _rows_at_a_time(self, group: int) -> int:
        """Fewer where rows are long on the average."""
        footer = self._parquet.metadata.row_group(group)
        row_bytes: int = max(1, footer.total_byte_size // max(1, footer.num_rows))
        return min(_BATCH_ROWS, max(1, _BATCH_BYTES // row_bytes))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        what = (
            f"{self._where}: not a readable Parquet file: it is truncated or damaged after row "
            f"{self.num_read}"
        )
        with foreign_call(what, self._refuse):
            try:
                with bounded_memory(_DECODING_BYTES):
                    yield
            except MemoryError as error:
                raise self._refuse(
                    f"{self._where}: the rows after row {self.num_read} take more than "
                    f"{_DECODING_BYTES} bytes of memory to decode"
                ) from error


def _check_footer(
    data: bytes, footer: Any, bounds: TableBounds, where: str, refuse: type[SpecpipeError]
) -> None:
    if footer.num_rows > bounds.rows:
        raise refuse(f"{where} has {footer.num_rows} rows, more than {bounds.rows}")
    most_values = max(bounds.rows, bounds.values)
    most_bytes = _VALUE_BYTES * most_values + bounds.text_bytes + _MARGIN
    for at in range(footer.num_columns):
        groups = range(footer.num_row_groups)
        chunks = [footer.row_group(group).column(at) for group in groups]
        values = sum(chunk.num_values for chunk in chunks)
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        if values > most_values or size > most_bytes:
            raise refuse(
                f"{where} holds {values} values in {size} bytes of "
                f"{chunks[0].path_in_schema}, more than {most_values} in {most_bytes}"
            )
        for chunk in chunks:
            check_pages(data, chunk)


def _held_bytes(batch: Any) -> int:
    """What rows take in Arrow and as Python objects; lists of numbers stay arrays."""
    return int(batch.nbytes) + sum(
        0 if _is_list_of_numbers(column.type) else _inner_bytes(column) for column in batch.columns
    )


def _is_list_of_numbers(kind: Any) -> bool:
    return (
        pa.types.is_nested(kind)
        and kind.num_fields == 1
        and (pa.types.is_primitive(kind.field(0).type) and not pa.types.is_struct(kind))
    )


def _inner_bytes(column: Any) -> int:
    """Of the Python objects within the cells of a column."""
    if isinstance(column, pa.ExtensionArray):
        return _inner_bytes(column.storage)
    if pa.types.is_dictionary(column.type):
        return _text_bytes(column)
    if isinstance(column, pa.StructArray):
        return sum(len(inner) * _OBJECT_BYTES + _inner_bytes(inner) for inner in column.flatten())
    if isinstance(column, pa.MapArray):
        start, stop = column.offsets[0].as_py(), column.offsets[-1].as_py()
        inners = [child.slice(start, stop - start) for child in (column.keys, column.items)]
        return sum(len(inner) * _OBJECT_BYTES + _inner_bytes(inner) for inner in inners)
    if pa.types.is_nested(column.type):
        inner = column.flatten()
        return len(inner) * _OBJECT_BYTES + _inner_bytes(inner)
    return 0


def _text_bytes(texts: Any) -> int:
    """Of all texts of a dictionary array, each as often as it stands there."""
    if not pa.types.is_string(texts.type.value_type):
        return len(texts) * _OBJECT_BYTES
    lengths = pc.binary_length(texts.dictionary).cast(pa.int64())
    return pc.sum(lengths.take(texts.indices)).as_py() or 0
