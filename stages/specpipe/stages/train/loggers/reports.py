"""Reporting the rows of metrics.jsonl to the loggers of a run."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.records.checkpoint import LoggerRecord
from specpipe.schemas.records.metrics import scalars
from specpipe.stages.train.loggers.logger import Logger
from specpipe.stages.train.loggers.sender import Sender


class Reports:
    """The loggers of a run; none to begin with, and then nothing is reported."""

    def __init__(self) -> None:
        self._senders: dict[str, Sender] = {}
        self._reported: dict[str, LoggerRecord] = {}

    def to(self, name: str, logger: Logger, record: LoggerRecord | None, step: int) -> None:
        """Report to a logger from here on, but not what the record says that it has for good.

        `step` is the one that the logger was opened with.
        """
        self._senders[name] = Sender(name, logger)
        if record is not None:
            self._reported[name] = record.up_to(step) if logger.takes_back else record

    def add(self, row: Mapping[str, Any]) -> None:
        """Report a row of metrics.jsonl; never fails."""
        values = scalars(row)
        for name, sender in self._senders.items():
            if not self._has(name, row):
                sender.send(row["step"], values)

    def close(self, *, finished: bool) -> None:
        """Close the loggers; `finished` unless the run is to go on later."""
        for sender in self._senders.values():
            sender.close(finished=finished)

    def _has(self, name: str, row: Mapping[str, Any]) -> bool:
        record = self._reported.get(name)
        if record is None:
            return False
        step: int = row["step"]
        return step <= (record.evaluation if "eval" in row else record.step)
