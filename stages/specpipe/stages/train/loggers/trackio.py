"""trackio: its own local database, or a server or Space by its own environment variables."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout

import trackio

from specpipe.stages.train.loggers.logger import Session


class Trackio:
    """One row per report, at its step."""

    takes_back = False

    def __init__(self, session: Session) -> None:
        with _quiet():
            self._run = trackio.init(
                project=session.project,
                name=session.run_id or session.name,
                resume="never" if session.run_id is None else "must",
                config=dict(session.settings),
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self.run_id = self._run.name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        with _quiet():
            # Not the run's own method, which trackio would call again as the process ends.
            trackio.finish()


@contextmanager
def _quiet() -> Iterator[None]:
    """trackio prints notes; stdout is for a command's result."""
    with redirect_stdout(sys.stderr):
        yield
