"""Reporting rows of metrics.jsonl to the loggers of a run; what fails there never ends training."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specpipe.schemas.checkpoint import LoggerRecord
from specpipe.schemas.metrics import scalars
from specpipe.stages.train.loggers.logger import Logger

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Reports:
    """The loggers of a run, by name; without one, nothing is reported."""

    loggers: dict[str, Logger] = field(default_factory=dict)
    reported: dict[str, LoggerRecord] = field(default_factory=dict)
    """For those that cannot take anything back: what not to report a second time."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Report a row of metrics.jsonl."""
        values = scalars(row)
        for name in list(self.loggers):
            if not self._has(name, row):
                try:
                    self.loggers[name].log(row["step"], values)
                except Exception as error:
                    self._give_up(name, error)

    def close(self, *, finished: bool) -> None:
        """Close the loggers; `finished` unless the run is to go on later."""
        for name, logger in list(self.loggers.items()):
            try:
                logger.close(finished=finished)
            except Exception as error:
                self._give_up(name, error)

    def _has(self, name: str, row: Mapping[str, Any]) -> bool:
        record = self.reported.get(name)
        if record is None:
            return False
        last: int = record.evaluation if "eval" in row else record.step
        return row["step"] <= last

    def _give_up(self, name: str, error: Exception) -> None:
        _log.warning(
            "--log %s fails and is left out from here on; training goes on, and metrics.jsonl has"
            " every row: %s: %s",
            name,
            type(error).__name__,
            error,
        )
        del self.loggers[name]
