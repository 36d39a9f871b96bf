"""What a command and its workers tell each other: lines of JSON."""

import json
from typing import Any

from specpipe.schemas.base import Record
from specpipe.schemas.settings.stages import DumpConfig


class Job(Record):
    """What a worker is to work on; its plan lies in the store."""

    config: DumpConfig
    stamp: str
    """By which the worker recognises the plan."""


def as_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
