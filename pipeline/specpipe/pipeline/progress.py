"""The progress of a long step, on stderr: a bar on a terminal, now and then a line in a log."""

import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from specpipe.pipeline.console import note, stderr

LOG_SECONDS = 15.0
"""In a log file, time between two lines of progress."""

LOG_WIDTH = 80


class Bar(RichProgress):
    """A bar with what remains, and below it a line of figures that is cut where it is too long."""

    def __init__(self, unit: str, console: Console) -> None:
        self.figures = ""
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            console=console,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(self.figures, no_wrap=True, overflow="ellipsis")


class Progress:
    """Told how far a step is; shows it."""

    def __init__(self, label: str, unit: str, bar: Bar | None) -> None:
        self._label, self._unit, self._bar = label, unit, bar
        self._task: TaskID | None = None
        self._first: tuple[float, int] | None = None
        """When it was told first, and how much was done then."""
        self._logged = time.monotonic()

    def __call__(self, done: int, total: int, figures: str = "") -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self._label, total=total, completed=done)
            self._bar.figures = figures
            self._bar.update(self._task, completed=done, total=total)
        elif now - self._logged >= LOG_SECONDS or (done == total and not figures):
            self._logged = now
            left = self._left(now, done, total)
            line = f"{self._label}: {done:,} of {total:,} {self._unit}{left}  {figures}".rstrip()
            note(textwrap.fill(line, LOG_WIDTH, subsequent_indent="  "))

    def _left(self, now: float, done: int, total: int) -> str:
        assert self._first is not None
        began, done_before = self._first
        if done == done_before or done >= total:
            return ""
        seconds = (now - began) / (done - done_before) * (total - done)
        return f", {timedelta(seconds=round(seconds))} left"


@contextmanager
def progress(label: str, unit: str) -> Iterator[Progress]:
    """Show the progress of a step while the context is open."""
    if not stderr.is_terminal:
        yield Progress(label, unit, None)
        return
    with Bar(unit, stderr) as bar:
        yield Progress(label, unit, bar)
