"""Messages between a command and its workers: lines of JSON."""

import json
from typing import Any

from specpipe.schemas.base import Record
from specpipe.schemas.settings.stages import DumpConfig


class Job(Record):
    """The job of a worker; its plan is in the store."""

    config: DumpConfig
    stamp: str
    """By which the worker recognises the plan."""


def as_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
