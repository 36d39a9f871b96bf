"""The rows of a JSONL file: one JSON object on each line."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from specpipe.schemas.errors import InputError
from specpipe.schemas.sample import Source
from specpipe.stages.dump.input_files import InputFile
from specpipe.stages.dump.input_stream import DamagedError, open_stream

LONGEST_LINE = 256 * 2**20
"""Bytes with the line's end; of a longer line no more than that is held, and it is refused."""

_SKIPPED_BYTES = 1 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; raises InputError, which begins with `where`."""
    try:
        value = json.loads(text, parse_constant=_no_number)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: holds half a surrogate pair, which is no text") from error
    except (ValueError, RecursionError) as error:
        # Not only JSONDecodeError: Python refuses integers of more than 4300 digits.
        raise InputError(f"{where}: malformed JSON: {error}") from error
    return value


def _parse(line: bytes, source: Source) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 (byte {error.start})") from error
    if not text.strip():
        raise InputError(f"{source}: a blank line")
    row = parse_json(text, str(source))
    if not isinstance(row, dict):
        raise InputError(f"{source}: a JSON {type(row).__name__}, not an object on a line")
    return row


def _too_long(source: Source, longest: int) -> NoReturn:
    raise InputError(f"{source}: a line of more than {longest} bytes; is it one object per line?")


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
