"""Parquet whose few bytes stand for gigabytes, and Parquet that is damaged."""

import base64
import io
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specpipe.schemas.errors import InputError, IntegrityError
from specpipe.stages.untrusted.memory import bounded_memory
from specpipe.stages.untrusted.parquet import ParquetRows, TableBounds, read_table

SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64()), ("ids", pa.list_(pa.int32()))])
ROWS = 1000
TABLE = pa.table([[f"s{n}" for n in range(ROWS)], range(ROWS), [[1, 2, 3]] * ROWS], schema=SCHEMA)
BOUNDS = TableBounds(rows=ROWS, values=3 * ROWS, text_bytes=8 * ROWS)
MANY = 20_000_000


def parquet(columns: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def shared_text(count: int, num_bytes: int) -> Any:
    """One text in each of `count` rows, which a dictionary holds once."""
    indices = pa.array(np.zeros(count, np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array(["x" * num_bytes]))


def one_list(values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def zeros(count: int) -> Any:
    return pa.array(np.zeros(count, np.int32))


def read(data: bytes, bounds: TableBounds = BOUNDS) -> Any:
    return read_table(data, SCHEMA, bounds, "the table")


def rows_of(data: bytes) -> list[Any]:
    rows = ParquetRows(io.BytesIO(data), "data", InputError)
    return [row for batch in rows.batches(rows.names) for row in batch.to_pylist()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd"},
        {"compression": "none", "use_dictionary": False},
        {"data_page_version": "2.0", "row_group_size": 70},
        {"data_page_size": 100, "dictionary_pagesize_limit": 50, "write_page_checksum": True},
    ],
)
def test_a_table_comes_back_as_it_was_written(options: dict[str, Any]) -> None:
    data = parquet(TABLE, **options)
    assert read(data).equals(TABLE)
    assert rows_of(data) == TABLE.to_pylist()


def test_a_table_without_rows_is_one() -> None:
    empty = TABLE.slice(0, 0)
    assert read(parquet(empty), TableBounds(0, 0)).equals(empty)
    assert rows_of(parquet(empty)) == []


@pytest.mark.parametrize(
    ("bounds", "problem"),
    [
        (TableBounds(ROWS - 1, 3 * ROWS), "has 1000 rows, more than 999"),
        (TableBounds(ROWS, 3 * ROWS - 1), "3000 values in .* of ids.list.element, more than 2999"),
        (TableBounds(ROWS, 3 * ROWS, 3889), "3890 bytes of name, more than 3889"),
    ],
)
def test_no_more_than_the_bounds_allow(bounds: TableBounds, problem: str) -> None:
    assert read(parquet(TABLE), TableBounds(ROWS, 3 * ROWS, 3890)).num_rows == ROWS
    with pytest.raises(IntegrityError, match=problem):
        read(parquet(TABLE), bounds)


def lying_footer(data: bytes) -> bytes:
    """The footer counts 2,000,000 values where the pages hold 20,000,000: as many bytes."""
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    said, meant = varint(MANY), varint(2_100_000)
    assert len(said) == len(meant)
    return data[:at] + data[at:].replace(said, meant)


def varint(number: int) -> bytes:
    number, data = 2 * number, b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            lambda: pa.table([shared_text(ROWS, 2**23), range(ROWS), [[]] * ROWS], SCHEMA.names),
            "does not have the columns|bytes of name",
        ),
        (
            lambda: pa.table([["a"] * MANY, zeros(MANY), zeros(MANY)], SCHEMA.names),
            "20000000 rows|does not have the columns",
        ),
        (lambda: pa.table([["a"], [0], one_list(zeros(MANY))], schema=SCHEMA), "20000000 values"),
    ],
    ids=["shared text", "rows", "one list"],
)
@pytest.mark.parametrize("schema", [True, False], ids=["typed", "untyped"])
def test_bombs_are_refused_before_they_are_decoded(
    make: Callable[[], Any], problem: str, schema: bool
) -> None:
    options = {"write_statistics": False, "dictionary_pagesize_limit": 2**30}
    data = parquet(make(), compression="zstd", store_schema=schema, **options)
    pa.default_memory_pool().release_unused()
    with bounded_memory(2**29), pytest.raises(IntegrityError, match=problem):
        read(data)


def test_pages_that_hold_more_than_the_footer_counts() -> None:
    """Arrow itself goes by the pages."""
    data = lying_footer(parquet(pa.table([["a"], [0], one_list(zeros(MANY))], schema=SCHEMA)))
    with pytest.raises(IntegrityError, match="a page holds more than the footer counts"):
        read(data, TableBounds(3_000_000, 3_000_000))


def test_columns_of_another_type_are_not_decoded() -> None:
    lists = pa.table([[["a"]], [0], [[1]]], names=SCHEMA.names)
    with pytest.raises(IntegrityError, match="does not have the columns"):
        read(parquet(lists))
    with pytest.raises(IntegrityError, match="has a null"):
        read(parquet(pa.table([[None], [0], [[1]]], schema=SCHEMA)))


def test_mutated_tables_are_read_or_refused() -> None:
    rng = random.Random(0)
    data = parquet(TABLE.slice(0, 50), compression="zstd")
    num_refused = 0
    with bounded_memory(2**29):
        for _ in range(1000):
            mutated = bytearray(data)
            for _ in range(rng.choice((1, 1, 3))):
                mutated[rng.randrange(len(mutated))] = rng.randrange(256)
            for parse in (read, rows_of):
                try:
                    parse(bytes(mutated))
                except (IntegrityError, InputError):
                    num_refused += 1
    assert num_refused > 500


ONE_LIST = (
    "UEFSMRUEFQgVGkwVAhUAEgAAKLUv/SAEIQAAAAAAABUAFToVTCwVgIjevgEVEBUGFQYcGAQAAAAAGAQAAAAAFgAoBA"
    "AAAAAYBAAAAAAREQAAACi1L/0gHekAAAgAAAAD/vCH3r4BAQYAAACAiN6+AQMBgIjevgEAFQQZTDUAGAZzY2hlbWEV"
    "AgA1AhgJaW5wdXRfaWRzFQIVBkw8AAAANQQYBGxpc3QVAgAVAiUCGAdlbGVtZW50ABYCGRwZHCYAHBUCGTUABhAZOA"
    "lpbnB1dF9pZHMEbGlzdAdlbGVtZW50FQwWgIjevgEWxAEW6AEmPiYIHBgEAAAAABgEAAAAABYAKAQAAAAAGAQAAAAA"
    "EREAGSwVBBUAFQIAFQAVEBUCADwpJgL+h96+ARlGAAAAgIjevgEAAAAWxAEWAiYIFugBABkcGAxBUlJPVzpzY2hlbW"
    "EY+AEvLy8vLzdBQUFBQVFBQUFBQUFBS0FBd0FCZ0FGQUFnQUNnQUFBQUFCQkFBTUFBQUFDQUFJQUFBQUJBQUlBQUFB"
    "QkFBQUFBRUFBQUFFQUFBQXpQLy8vd0FBQVF3VUFBQUFKQUFBQUFRQUFBQUJBQUFBTEFBQUFBa0FBQUJwYm5CMWRGOX"
    "BaSE1BQUFBRUFBUUFCQUFBQUJBQUZBQUlBQVlBQndBTUFBQUFFQUFRQUFBQUFBQUJBaEFBQUFBZ0FBQUFCQUFBQUFB"
    "QUFBQUVBQUFBYVhSbGJRQUFBQUFJQUF3QUNBQUhBQWdBQUFBQUFBQUJJQUFBQUE9PQAYIHBhcnF1ZXQtY3BwLWFycm"
    "93IHZlcnNpb24gMjYuMC4xGRwcAAAA/gEAAFBBUjE="
)
"""`{"input_ids": one_list(zeros(200_000_000))}` as pyarrow 26 writes it with zstd, in seconds."""


def messages(contents: Any, **options: Any) -> bytes:
    column = one_list(pa.StructArray.from_arrays([contents], ["content"]))
    return parquet(
        {"messages": column},
        compression="zstd",
        write_statistics=False,
        dictionary_pagesize_limit=2**30,
        **options,
    )


STREAMED: dict[str, Callable[[], bytes]] = {
    "one list": lambda: base64.b64decode(ONE_LIST),
    "text in messages": lambda: messages(shared_text(1000, 2**23), store_schema=False),
    "dictionary in messages": lambda: messages(shared_text(1000, 2**23)),
    "empty messages": lambda: messages(pa.nulls(MANY, pa.string())),
}


@pytest.mark.parametrize("kind", STREAMED)
def test_rows_that_expand_are_refused_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    """In a process of its own, whose peak is looked at."""
    path = tmp_path / "data.parquet"
    data = STREAMED[kind]()
    path.write_bytes(data)
    assert len(data) < 4000
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path)], capture_output=True, text=True, check=True
    )
    message, peak_bytes = done.stdout.splitlines()
    assert "row" in message
    assert int(peak_bytes) < 2**31


_READ = """
import sys
from scripts.bench.resident import peak
from specpipe.schemas.errors import InputError
from specpipe.stages.untrusted.parquet import ParquetRows
try:
    rows = ParquetRows(open(sys.argv[1], "rb"), "data", InputError)
    for batch in rows.batches(rows.names):
        batch.to_pylist()
except InputError as error:
    print(error)
print(peak())
"""


def test_a_column_name_that_is_not_utf8() -> None:
    data = parquet({"nombre": [1]}).replace(b"nombre", b"nombr\xff")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        rows_of(data)


def test_the_bound_on_memory_ends_with_the_block() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), bounded_memory(2**28):
        bytearray(2**30)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    bytearray(2**30)
