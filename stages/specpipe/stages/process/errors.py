"""Errors on their way from one process to another."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.errors import SpecpipeError


def error_record(error: BaseException) -> dict[str, Any]:
    """An error as JSON."""
    return {"error": str(error), "kind": type(error).__name__}


def error_of(record: Mapping[str, Any], process: str) -> SpecpipeError:
    """The error of another process, named `process`, as one of this process.

    One that is unforeseen there is a plain SpecpipeError: its traceback is in that process's log.
    """
    text, kind = record["error"], _kinds(SpecpipeError).get(record["kind"])
    if kind is None:
        return SpecpipeError(
            f"{process} failed: {record['kind']}: {text} (its own log has the traceback)"
        )
    return kind(text)


def _kinds(kind: type[SpecpipeError]) -> dict[str, type[SpecpipeError]]:
    found = {kind.__name__: kind}
    for below in kind.__subclasses__():
        found |= _kinds(below)
    return found
