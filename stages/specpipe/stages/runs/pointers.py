"""Where the checkpoints of a run lie: `specpipe run` and the API ask, without importing torch."""

import re
from pathlib import Path

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.records.checkpoint import (
    BEST_FILE,
    CHECKPOINTS_FOLDER,
    LATEST_FILE,
    STATE_FILE,
)
from specpipe.stages.untrusted.files import read_file

_NAME = re.compile(r"[\w.-]{1,100}")


def resolve_checkpoint(location: str | Path) -> Path:
    """A checkpoint's folder: itself, or a run directory's best checkpoint, else its latest."""
    path = Path(str(location).removeprefix("file://"))
    if (path / STATE_FILE).exists():
        return path
    name = read_pointer(path, BEST_FILE) or read_pointer(path, LATEST_FILE)
    if name is None:
        raise ConfigError(f"{path} is neither a checkpoint nor a run directory with one")
    return path / CHECKPOINTS_FOLDER / Path(name).name


def latest_checkpoint(run: Path) -> Path | None:
    name = read_pointer(run, LATEST_FILE)
    return None if name is None else run / CHECKPOINTS_FOLDER / Path(name).name


def read_pointer(run: Path, name: str) -> str | None:
    """The checkpoint's name in the pointer file `name` (latest, best) of a run directory.

    Raises IntegrityError where the file holds no name.
    """
    path = run / name
    if not path.exists():
        return None
    pointed = read_file(path).decode(errors="replace").strip()
    if not _NAME.fullmatch(pointed):
        raise IntegrityError(f"{path} is damaged: it names no checkpoint; give one of them")
    return pointed
