"""What a person sees: notes on stderr, tables and JSON on stdout."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from specpipe.schemas.errors import SpecpipeError
from specpipe.schemas.printable import printable

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def note(message: str) -> None:
    """A line on stderr. Control characters are spelled out: messages quote what strangers wrote."""
    stderr.print(printable(message), markup=False)


def fail(error: SpecpipeError) -> NoReturn:
    """One line for the error, and its exit code; with --json also as a JSON object on stdout."""
    if not error.already_reported:
        note(f"specpipe: {error}")
    json_error(str(error), error.kind)
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


def show(
    title: str, rows: Sequence[tuple[str, str]], result: dict[str, Any], *, as_json: bool
) -> None:
    """The end of a command: a plain two-column table, or one JSON object as stdout's last line."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(printable(name), printable(value))
    (stderr if as_json else Console(highlight=False)).print(table, markup=False)
    if as_json:
        print(json.dumps(result), flush=True)


def show_columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table with a header, on stderr."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(printable, row))
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
