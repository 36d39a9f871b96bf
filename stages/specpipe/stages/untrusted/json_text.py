"""JSON of strangers: UTF-8, of bounded depth, without what JSON does not have."""

import json
from typing import Any, NoReturn

from specpipe.schemas.errors import IntegrityError, SpecpipeError

_DEEPEST = 200
"""Brackets within brackets: libraries walk what is read by recursion, and Python ends at 1,000."""
_MOST_SIGNS = 2**23
"""Commas, colons and opening brackets: Python objects take up to 80 bytes for each."""


def parse_json(
    text: bytes | str,
    where: str,
    refuse: type[SpecpipeError] = IntegrityError,
    *,
    allow_non_finite: bool = False,
) -> Any:
    """The value of a JSON text.

    Raises `refuse`, naming `where`: not UTF-8, malformed, nested deeper than 200, a number of more
    than 4,300 digits, half a surrogate pair, more than some 8 million values. NaN and Infinity,
    which Python's own writer makes, are refused too unless `allow_non_finite`.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        if _num_signs(text) > _MOST_SIGNS:
            raise refuse(f"{where}: JSON with more than {_MOST_SIGNS} commas, colons and brackets")
        value = json.loads(text, parse_constant=None if allow_non_finite else _refuse_constant)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
        is_deep = _is_deeper(value, _DEEPEST)
    except SpecpipeError:
        raise
    except UnicodeDecodeError as error:
        raise refuse(f"{where}: not UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise refuse(f"{where}: holds half a surrogate pair, which is no text") from None
    except RecursionError:
        is_deep = True
    except ValueError as error:
        # Not only JSONDecodeError: Python refuses integers of more than 4300 digits.
        raise refuse(f"{where}: malformed JSON: {error}") from None
    if is_deep:
        raise refuse(f"{where}: JSON that is nested deeper than {_DEEPEST}")
    return value


def parse_object(
    text: bytes | str,
    where: str,
    refuse: type[SpecpipeError] = IntegrityError,
    *,
    allow_non_finite: bool = False,
) -> dict[str, Any]:
    """A JSON object; see `parse_json`. Raises `refuse` for any other value, too."""
    value = parse_json(text, where, refuse, allow_non_finite=allow_non_finite)
    if not isinstance(value, dict):
        raise refuse(f"{where}: a JSON {type(value).__name__}, not an object")
    return value


def _num_signs(text: str) -> int:
    return sum(map(text.count, ",:[{")) if len(text) > _MOST_SIGNS else 0


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _is_deeper(value: Any, deepest: int) -> bool:
    """Whether containers are nested more than `deepest` times; walks level by level."""
    level = [value]
    for _ in range(deepest + 1):
        containers = [entry for entry in level if isinstance(entry, dict | list)]
        if not containers:
            return False
        level = [
            child
            for container in containers
            for child in (container.values() if isinstance(container, dict) else container)
        ]
    return any(isinstance(entry, dict | list) for entry in level)
