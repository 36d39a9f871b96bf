"""What a person sees: progress and notes on stderr, tables and JSON on stdout."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from specpipe.schemas.errors import SpecpipeError

LOG_SECONDS = 15.0
"""In a log file, time between two lines of progress."""

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def note(message: str) -> None:
    """A line on stderr."""
    stderr.print(message, markup=False)


def fail(error: SpecpipeError) -> NoReturn:
    """One line for the error, and its exit code; with --json also as a JSON object on stdout."""
    if not error.is_told:
        note(f"specpipe: {error}")
    json_error(str(error), type(error).__name__)
    sys.exit(error.exit_code)


def json_error(message: str, kind: str) -> None:
    """With --json, the error as stdout's last line."""
    if "--json" in sys.argv and is_first_process():
        print(json.dumps({"error": message, "kind": kind}), flush=True)


def is_first_process() -> bool:
    """Whether this process speaks for all that torchrun started; alone it does, too."""
    return os.environ.get("RANK", "0") == "0"


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars out of ours; called before they are imported."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)


class Progress:
    """Progress of one long step: a bar on a terminal, now and then a line in a log file."""

    def __init__(self, label: str, unit: str, bars: Bars | None) -> None:
        self._label, self._unit, self._bars = label, unit, bars
        self._task: TaskID | None = None
        self._figures: dict[str, float] = {}
        self._logged = time.monotonic()

    def __call__(self, done: int, total: int, figures: dict[str, float] | None = None) -> None:
        self._figures |= figures or {}
        text = "  ".join(f"{name} {value:.3f}" for name, value in self._figures.items())
        if self._bars is not None:
            if self._task is None:
                self._task = self._bars.add_task(self._label, total=total, figures="")
            self._bars.update(self._task, completed=done, total=total, figures=text)
        elif time.monotonic() - self._logged >= LOG_SECONDS or (done == total and not figures):
            self._logged = time.monotonic()
            note(f"{self._label}: {done:,} of {total:,} {self._unit}  {text}".rstrip())


@contextmanager
def progress(label: str, unit: str) -> Iterator[Progress]:
    """Show the progress of a step while the context is open."""
    if not stderr.is_terminal:
        yield Progress(label, unit, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Bars(*columns, console=stderr) as bars:
        yield Progress(label, unit, bars)


def show(
    title: str, rows: Sequence[tuple[str, str]], result: dict[str, Any], *, as_json: bool
) -> None:
    """The end of a command: a plain two-column table, or one JSON object as stdout's last line."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    (stderr if as_json else Console(highlight=False)).print(table, markup=False)
    if as_json:
        print(json.dumps(result), flush=True)


def show_columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table with a header, on stderr."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    stderr.print(table, markup=False)
    note("")


def counted(number: int, noun: str) -> str:
    """1 object, 2,000 objects."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def file_size(num_bytes: float) -> str:
    """A size in binary units: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
