"""One logger, fed by its own thread: a service that is slow or dead never holds up training."""

import logging
import threading
from collections.abc import Mapping
from queue import SimpleQueue

from specpipe.stages.train.loggers.logger import Logger

CLOSE_SECONDS = 60.0
"""Longest wait, at the end of a run, for a logger to take what is left."""

_log = logging.getLogger(__name__)

_Row = tuple[int, Mapping[str, float]]


class Sender:
    """Sends rows to a logger in their order; after its first failure, a warning and nothing more.

    A row that still waits here when the process is killed is lost to the logger.
    """

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._rows: SimpleQueue[_Row | None] = SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._send, name=f"log-{name}", daemon=True)
        self._thread.start()

    def send(self, step: int, values: Mapping[str, float]) -> None:
        if not self._failed:
            self._rows.put((step, values))

    def close(self, *, finished: bool) -> None:
        """Let what waits be taken, and close the logger."""
        self._rows.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"it has taken nothing for {CLOSE_SECONDS:.0f} s")
            return
        try:
            self._logger.close(finished=finished)
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}")

    def _send(self) -> None:
        while not self._failed and (row := self._rows.get()) is not None:
            try:
                self._logger.log(*row)
            except Exception as error:
                self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, problem: str) -> None:
        if not self._failed:
            _log.warning(
                "--log %s fails and is left out from here on; training goes on, and metrics.jsonl"
                " has every row: %s",
                self._name,
                problem,
            )
        self._failed = True
