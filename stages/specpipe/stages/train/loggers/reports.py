"""Reporting the rows of metrics.jsonl to the loggers of a run."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.records.metrics import scalars
from specpipe.stages.train.loggers.logger import Logger
from specpipe.stages.train.loggers.sender import Sender


class Reports:
    """The loggers of a run; none to begin with, and then nothing is reported."""

    def __init__(self) -> None:
        self._senders: list[Sender] = []

    def to(self, name: str, logger: Logger) -> None:
        """Report to a logger from here on."""
        self._senders.append(Sender(name, logger))

    def add(self, row: Mapping[str, Any]) -> None:
        """Report a row of metrics.jsonl; never fails."""
        values = scalars(row)
        for sender in self._senders:
            sender.send(row["step"], values)

    def close(self, *, finished: bool) -> None:
        """Close the loggers; `finished` unless the run is to go on later."""
        for sender in self._senders:
            sender.close(finished=finished)
