"""The time that a search has taken, over all its runs."""

import json
import time
from pathlib import Path
from typing import Self

from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.store.local_disk import write_file
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.json_text import parse_object

_SAVE_SECONDS = 5.0
_MOST_SECONDS = 1e12


class Clock:
    """Counts on from what the file says; a kill loses a few seconds."""

    def __init__(self, path: Path) -> None:
        self._path, self._began, self._saved = path, time.monotonic(), time.monotonic()
        self._before = _seconds(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Also what a stopped search spent."""
        self.save()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def tick(self) -> None:
        """Write the time down, where that was some seconds ago."""
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        self._saved = time.monotonic()
        write_file(self._path, json.dumps({"seconds": round(self.seconds, 3)}).encode())


def _seconds(path: Path) -> float:
    """0 where there is no file."""
    if not path.exists():
        return 0.0
    try:
        seconds = parse_object(read_file(path), str(path)).get("seconds")
    except IntegrityError:
        seconds = None
    if not isinstance(seconds, int | float) or not 0 <= seconds < _MOST_SECONDS:
        raise IntegrityError(f"{path} holds no time; remove it, and the search counts from 0")
    return float(seconds)
