"""The rows of a run's metrics.jsonl."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.checkpoint import METRICS_FILE, TrainState
from specpipe.schemas.records.metrics import EvalMetrics
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.json_text import parse_object

Row = dict[str, Any]


def metric_rows(run: Path) -> Iterator[Row]:
    """Each row in its order, none where there is no file; a line that a kill tore is no row."""
    path = run / METRICS_FILE
    if path.exists():
        yield from _rows(read_file(path, most_bytes=None))


def recorded_metrics(checkpoint: Path, state: TrainState) -> EvalMetrics | None:
    """The run's evaluation of exactly this checkpoint, if it made one."""
    if state.best is not None and state.best_step == state.step:
        return state.best
    for row in metric_rows(checkpoint.parent.parent):
        if row["step"] == state.step and "eval" in row:
            return EvalMetrics.model_validate(row["eval"])
    return None


class NewMetricRows:
    """New rows since the last call, of a file that training is still writing."""

    def __init__(self, run: Path) -> None:
        self._path = run / METRICS_FILE
        self._inode = self._seen = 0
        """Of the file, so many bytes of whole lines."""

    def look(self) -> list[Row]:
        """A run that goes on replaces its file by one that is cut back: all of it is new then."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._seen:
                self._inode, self._seen = status.st_ino, 0
            file.seek(self._seen)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._seen += len(whole)
        return list(_rows(whole))


def _rows(lines: bytes) -> Iterator[Row]:
    for line in lines.splitlines():
        try:
            row = parse_object(line, METRICS_FILE, allow_non_finite=True)
        except IntegrityError:
            return
        if not isinstance(row.get("step"), int) or not isinstance(row.get("eval", {}), dict):
            raise IntegrityError(f"{METRICS_FILE} is damaged: a row says no step, or no evaluation")
        yield row
