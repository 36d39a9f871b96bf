"""TensorBoard: event files in RUN/tensorboard."""

import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from specpipe.stages.train.loggers.logger import Session

FOLDER = "tensorboard"
FLUSH_SECONDS = 15
MOST_SECONDS_BEHIND = 5.0
"""A clock that is further behind that of an earlier run is not waited for."""


class TensorBoard:
    """Scalars by step. What was written of steps that are repeated is withdrawn by a mark."""

    def __init__(self, session: Session) -> None:
        self.run_id = FOLDER
        folder = session.folder / FOLDER
        _wait_for_a_later_name(folder)
        self._writer = SummaryWriter(
            str(folder),
            purge_step=None if session.run_id is None else session.step + 1,
            flush_secs=FLUSH_SECONDS,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, finished: bool) -> None:
        self._writer.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """Readers take event files in the order of their names, which begin with the second at which
    they were opened: within one second, what a resumed run repeats would be read first."""
    parts = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    latest = max((int(part) for part in parts if part.isdigit()), default=0)
    wait = latest + 1 - time.time()
    if 0 < wait <= MOST_SECONDS_BEHIND:
        time.sleep(wait)
