"""What the pages of a Parquet file claim, read before anything is decoded.

Arrow believes each page's own header, whatever the footer says: it allocates the page's stated
size, and decodes as many values as it states, which cost nothing in run lengths.
"""

from dataclasses import dataclass
from typing import Any

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_CLAIMS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""Where a page header of each type holds its own struct."""
_VALUES = 1
_ENCODING = {_DATA: 2, _DATA_V2: 4}
_EXPANSION_IS_KNOWN = (0, 2, 3, 8)
"""PLAIN, PLAIN_DICTIONARY, RLE and RLE_DICTIONARY; the others (of deltas) repeat prefixes."""
_SMALLEST_ENTRY = 4
"""Bytes of a dictionary's entry: a number, or a text's length."""

_STRUCT, _BINARY, _DOUBLE, _LISTS, _MAP = 12, 8, 7, (9, 10), 11
_BOOLEANS, _BYTE = (1, 2), 3
_DEEPEST = 8


class PageError(ValueError):
    """Pages that contradict the footer."""


@dataclass(frozen=True, slots=True)
class _Page:
    kind: int
    size: int
    values: int
    encoding: int
    end: int


def check_pages(data: bytes | memoryview, column: Any) -> None:
    """Raises PageError unless the pages of a column chunk hold what its footer (pyarrow's
    ColumnChunkMetaData) counts: values, and bytes once decompressed."""
    if not column.num_values:
        return  # no page is read
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    end = start + column.total_compressed_size
    if not 0 < start <= end <= len(data):
        raise PageError("a column lies beyond the file")
    view = memoryview(data)[:end]
    values = size = 0
    while values < column.num_values:
        page = _page(view, start)
        start, size = page.end, size + page.size
        if page.kind == _DICTIONARY:
            if page.values * _SMALLEST_ENTRY > page.size:
                raise PageError("a dictionary holds fewer entries than it says")
        elif page.kind in _ENCODING:
            values += page.values
            if page.encoding not in _EXPANSION_IS_KNOWN:
                raise PageError(f"a page has the encoding {page.encoding}")
    if values != column.num_values or size > column.total_uncompressed_size:
        raise PageError("a page holds more than the footer counts")


def _page(data: memoryview, at: int) -> _Page:
    try:
        header, at = _struct(data, at, 0)
    except IndexError:
        raise PageError("a page's header is cut off") from None
    kind, size, stored = (header.get(field) for field in (1, 2, 3))
    claims = header.get(_CLAIMS.get(kind or 0, 0), {})
    values = claims.get(_VALUES, 0) if isinstance(claims, dict) else None
    encoding = claims.get(_ENCODING.get(kind or 0, 0), 0) if isinstance(claims, dict) else None
    numbers = [
        number
        for number in (kind, size, stored, values, encoding)
        if isinstance(number, int) and number >= 0
    ]
    if len(numbers) < 5 or at + numbers[2] > len(data):
        raise PageError("a page's header is damaged")
    return _Page(numbers[0], numbers[1], numbers[3], numbers[4], at + numbers[2])


def _struct(data: memoryview, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Fields of a struct in Thrift's compact protocol that are numbers or structs, and its end."""
    if depth > _DEEPEST:
        raise PageError("a page's header is nested deep")
    fields: dict[int, Any] = {}
    name = 0
    while kind := data[at]:
        at += 1
        delta, kind = kind >> 4, kind & 15
        if delta:
            name += delta
        else:
            name, at = _number(data, at)
        if kind in _BOOLEANS:
            continue
        fields[name], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    if kind == _BINARY:
        size, at = _varint(data, at)
        return None, at + size
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _BYTE:
        return None, at + 1
    if kind in _LISTS or kind == _MAP:
        raise PageError("a page's header holds a list")  # the format has none there
    return _number(data, at)


def _number(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise PageError("a page's header holds an endless number")
