"""One process at a time in a folder of a local disk."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specpipe.schemas.errors import ConfigError, StoreError
from specpipe.stages.storage.store.local_disk import check_no_file

LOCK_FILE = ".lock"
_LOOK_SECONDS = 0.1


@contextmanager
def locked(
    folder: Path, taken: str, *, patience: float = 0.0, name: str = LOCK_FILE
) -> Iterator[int]:
    """Hold the folder, which is made where it is missing; yields the lock's file descriptor.

    `name` is the lock's file, of which a folder that several commands write to has several.
    Processes that inherit the descriptor hold the folder too. Raises ConfigError with the text
    `taken` where another process has had it for `patience` seconds, or where a file is in the way,
    StoreError where the folder cannot be written to.
    """
    check_no_file(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / name).open("a")
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error.strerror}") from error
    with lock:
        deadline = time.monotonic() + patience
        while not _try(lock.fileno(), fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise ConfigError(f"{folder}: {taken}")
            time.sleep(_LOOK_SECONDS)
        yield lock.fileno()


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder now."""
    try:
        lock = (folder / LOCK_FILE).open("a")
    except OSError:
        return False
    with lock:
        return not _try(lock.fileno(), fcntl.LOCK_SH)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
