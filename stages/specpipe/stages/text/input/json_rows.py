"""The rows of a JSONL file: one JSON object on each line."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import Source
from specpipe.stages.text.input.files import InputFile
from specpipe.stages.text.input.stream import DamagedError, open_stream
from specpipe.stages.untrusted.json_text import parse_object

LONGEST_LINE = 64 * 2**20
"""Bytes with the line's end; of a longer line no more than that is held, and it is refused.

Three million tokens with their masks and labels fit, and all text that can be tokenised.
"""

_SKIPPED_BYTES = 1 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_FORM = (
    "a data file is Parquet (.parquet), or has one JSON object on each line, as `jq -c '.[]'` "
    "makes of a JSON list"
)


def json_rows(
    file: InputFile, longest: int = LONGEST_LINE
) -> Iterator[tuple[Source, Callable[[], dict[str, Any]]]]:
    """Where each row stands, and what reads it or raises InputError.

    Raises InputError where a compressed file is truncated or damaged.
    """
    number = 0
    try:
        with open_stream(file) as stream:
            while line := stream.readline(longest + 1):
                number += 1
                source = Source(file.name, number)
                if len(line) > longest:
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(_SKIPPED_BYTES)
                    yield source, partial(_too_long, source, longest)
                    continue
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                yield source, partial(_parse, line, source)
    except DamagedError as error:
        raise InputError(f"{error} after line {number}") from error


def _parse(line: bytes, source: Source) -> dict[str, Any]:
    if not line.strip():
        raise InputError(f"{source}: a blank line")
    try:
        return parse_object(line, str(source), InputError)
    except InputError as error:
        # A file of another form fails at its first line.
        raise InputError(f"{error}; {_FORM}" if source.line == 1 else str(error)) from None


def _too_long(source: Source, longest: int) -> NoReturn:
    raise InputError(f"{source}: a line of more than {longest} bytes; is it one object per line?")
