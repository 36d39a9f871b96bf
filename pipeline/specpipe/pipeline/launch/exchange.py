"""What a command and its workers tell each other: lines of JSON."""

import json
from typing import Any, NoReturn

from specpipe.schemas.base import Record
from specpipe.schemas.errors import SpecpipeError
from specpipe.schemas.settings.stages import DumpConfig


class Job(Record):
    """What a worker is to work on; its plan lies in the store."""

    config: DumpConfig
    stamp: str
    """By which the worker recognises the plan."""


def error_record(error: BaseException) -> dict[str, Any]:
    """An error as it travels to the command."""
    return {"error": str(error), "kind": type(error).__name__}


def raise_reported(worker: str, record: dict[str, Any]) -> NoReturn:
    """A worker's error, as if it had happened here; an unforeseen one as a RuntimeError."""
    kind = _kinds(SpecpipeError).get(record["kind"])
    if kind is None:
        raise RuntimeError(
            f"{worker} failed: {record['kind']}: {record['error']} (its own log has the traceback)"
        )
    raise kind(record["error"])


def as_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _kinds(kind: type[SpecpipeError]) -> dict[str, type[SpecpipeError]]:
    found = {kind.__name__: kind}
    for below in kind.__subclasses__():
        found |= _kinds(below)
    return found
