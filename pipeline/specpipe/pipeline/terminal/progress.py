"""The progress of a long step, on stderr: a bar on a terminal, now and then a line in a log."""

import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from specpipe.pipeline.terminal.console import note, stderr
from specpipe.schemas.printable import printable
from specpipe.stages.process.activity import watched

LOG_SECONDS = 15.0
"""In a log file, time between two lines of progress."""

LOG_WIDTH = 80

_ESTIMATE_SECONDS = 10.0
"""How long a rate is watched before it says how long the rest takes."""


class Bar(RichProgress):
    """A bar with what remains, and below it a line of figures that is cut where it is too long."""

    def __init__(self, unit: str, console: Console) -> None:
        self.figures = ""
        self.activity: Activity | None = None
        """What is being done while there are no figures."""
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
        below = self.figures or (self.activity.text() if self.activity else "")
        if below:
            yield Text(below, no_wrap=True, overflow="ellipsis")


class Activity:
    """The current activity of a step, and when it began."""

    def __init__(self) -> None:
        self._what, self._began = "", time.monotonic()

    def change(self, what: str) -> bool:
        """Whether this is another phase than before, and not the same one with other figures."""
        is_other = what.partition(":")[0] != self._what.partition(":")[0]
        self._what = what
        if is_other:
            self._began = time.monotonic()
        return is_other

    def text(self) -> str:
        """ "starting vLLM (0:00:15)"; empty where nothing was said."""
        if not self._what:
            return ""
        seconds = int(time.monotonic() - self._began)
        since = f" ({timedelta(seconds=seconds)})" if seconds else ""
        return f"{printable(self._what)}{since}"


class Progress:
    """Shows the progress and the activity of a step."""

    def __init__(self, label: str, unit: str, bar: Bar | None) -> None:
        self._label, self._unit, self._bar = label, unit, bar
        self._task: TaskID | None = None
        self._begun: int | None = None
        """Amount done at the first report."""
        self._rated: tuple[float, int] | None = None
        """When something was done first, and how much was done then: what came before, such as
        the start of an engine, says nothing of the rate."""
        self._logged = time.monotonic()
        self._activity = Activity()
        if bar is not None:
            bar.activity = self._activity

    def __call__(self, done: int, total: int, figures: str = "") -> None:
        now = time.monotonic()
        if self._begun is None:
            self._begun = done
        if self._rated is None and done > self._begun:
            self._rated = now, done
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self._label, total=total, completed=done)
            self._bar.figures = figures
            self._bar.update(self._task, completed=done, total=total)
        elif now - self._logged >= LOG_SECONDS or (done == total and not figures):
            left = self._left(now, done, total)
            self._log(f"{done:,} of {total:,} {self._unit}{left}  {figures}")

    def doing(self, what: str) -> None:
        """Told what the step is doing now; in a log, each phase is a line at once."""
        if self._activity.change(what) and self._bar is None:
            self._log(what)

    def go_on(self) -> None:
        """In a log: say again what is being done, where nothing was said for a while."""
        text = self._activity.text()
        if text and time.monotonic() - self._logged >= LOG_SECONDS:
            self._log(text)

    def _log(self, what: str) -> None:
        self._logged = time.monotonic()
        line = f"{self._label}: {what}".rstrip()
        note(textwrap.fill(line, LOG_WIDTH, subsequent_indent="  "))

    def _left(self, now: float, done: int, total: int) -> str:
        """How long the rest takes; empty before a rate is known."""
        if self._rated is None or done >= total:
            return ""
        began, done_before = self._rated
        if done <= done_before or now - began < _ESTIMATE_SECONDS:
            return ""
        seconds = (now - began) / (done - done_before) * (total - done)
        return f", {timedelta(seconds=round(seconds))} left"


@contextmanager
def progress(label: str, unit: str) -> Iterator[Progress]:
    """Show the progress of a step, and what it says that it is doing, while the context is open."""
    if not stderr.is_terminal:
        show = Progress(label, unit, None)
        with watched(show.doing), _heard(show):
            yield show
        return
    with Bar(unit, stderr) as bar:
        show = Progress(label, unit, bar)
        with watched(show.doing):
            yield show


@contextmanager
def _heard(show: Progress) -> Iterator[None]:
    """Within, a thread goes on saying what is being done: an engine that starts says nothing."""
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.wait(LOG_SECONDS / 3):
            show.go_on()

    thread = threading.Thread(target=go_on, name="specpipe-progress", daemon=True)
    try:
        # Starting waits, and a signal may end the step right there: the thread ends as well.
        thread.start()
        yield
    finally:
        is_over.set()
        if thread.is_alive():
            thread.join()
