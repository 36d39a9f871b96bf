"""What every benchmark's command does around its parts."""

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import click


def chosen_parts(text: str, known: str) -> list[str]:
    """The letters of --parts; raises click.UsageError for one that is none of `known`."""
    chosen = [part.strip() for part in text.split(",")]
    if unknown := sorted({part for part in chosen if part not in [*known]}):
        raise click.UsageError(f"--parts {','.join(unknown)}: there are {', '.join(known)}")
    return chosen


@contextmanager
def working_folder(above: Path | None) -> Iterator[Path]:
    """A new folder that goes in the end, with the processes and servers of who is ended by
    SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder = Path(mkdtemp(prefix="bench-", dir=above)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
