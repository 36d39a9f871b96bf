"""TensorBoard: event files in RUN/tensorboard."""

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from specpipe.stages.train.loggers.logger import Session

FOLDER = "tensorboard"
FLUSH_SECONDS = 15


class TensorBoard:
    """Scalars by step. What was written of steps that are repeated is withdrawn by a mark."""

    def __init__(self, session: Session) -> None:
        self.run_id = FOLDER
        self._writer = SummaryWriter(
            str(session.folder / FOLDER),
            purge_step=None if session.run_id is None else session.step + 1,
            flush_secs=FLUSH_SECONDS,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, finished: bool) -> None:
        self._writer.close()
