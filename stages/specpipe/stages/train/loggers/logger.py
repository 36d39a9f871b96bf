"""The interface of a logger: a service that a run's metrics are sent to besides metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Session:
    """Arguments to open a logger with: the run, and the step that it resumes from."""

    folder: Path
    """The run directory."""
    project: str
    name: str
    settings: Mapping[str, Any]
    """The resolved configuration, without credentials."""
    step: int
    """Optimiser steps that stand; what comes is of later steps (-1: not even an evaluation), of
    which a run that was killed may have reported some already."""
    run_id: str | None
    """What the logger called this run when it was opened before."""


class Logger(Protocol):
    """Open: takes metrics until it is closed. Any call may fail, in any way of its library."""

    run_id: str
    """What the service calls the run, to continue it by."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Report values of a step; steps come in order, and a step may come twice."""

    def close(self, *, finished: bool) -> None:
        """Send what waits; `finished` unless the run is to go on later."""
