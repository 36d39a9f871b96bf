"""The rows of a JSONL file: one JSON object on each line."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from specpipe.schemas.errors import InputError
from specpipe.schemas.sample import Source
from specpipe.stages.dump.input_files import InputFile
from specpipe.stages.dump.input_stream import open_stream

LONGEST_LINE = 256 * 2**20
"""Bytes; a longer line is refused without being held in memory."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def json_rows(
    file: InputFile, longest: int = LONGEST_LINE
) -> Iterator[tuple[Source, Callable[[], dict[str, Any]]]]:
    """Where each row stands, and what reads it or raises InputError."""
    with open_stream(file) as stream:
        number = 0
        while line := stream.readline(longest + 1):
            number += 1
            source = Source(file.name, number)
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if len(line.rstrip(b"\r\n")) <= longest:
                yield source, partial(_parse, line, source)
                continue
            while line and not line.endswith(b"\n"):
                line = stream.readline(longest)
            yield source, partial(_too_long, source, longest)


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
