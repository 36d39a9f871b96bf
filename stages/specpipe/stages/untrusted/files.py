"""Files of strangers: regular files of a bounded size, and nothing else."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from specpipe.schemas.errors import IntegrityError, SpecpipeError, StoreError

MOST_BYTES = 2**28
"""Bytes of a file that is read whole (256 MiB): configs, tokenizers, records."""

_PIECE_BYTES = 2**22

_NOT_REGULAR = "a pipe, a socket or a device"
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def read_file(
    path: Path,
    refuse: type[SpecpipeError] = IntegrityError,
    *,
    where: str = "",
    most_bytes: int | None = MOST_BYTES,
    or_pipe: bool = False,
) -> bytes:
    """The bytes of a regular file; with `or_pipe` also of a pipe or a device, for what a person
    names on the command line (`--config <(...)`). `most_bytes` None takes any size: of checkpoints
    and of what grows with a run.

    Raises `refuse` where there is no file, or a pipe or a device in its place (a read of those may
    never end), or more than `most_bytes`. Raises StoreError where the disk or missing rights
    prevent the read. Each names `where`, or else the path.
    """
    where = where or str(path)
    try:
        with open(path, "rb") if or_pipe else open_regular(path) as file:
            data = file.read() if most_bytes is None else _read(file, most_bytes + 1)
    except NotRegularError as error:
        raise refuse(f"{where} is {error}, not a file") from None
    except _MISSING as error:
        raise refuse(f"{where}: {error.strerror}") from None
    except ValueError as error:  # a name with NUL or half a surrogate pair
        raise refuse(f"{where}: {error}") from None
    except OSError as error:
        raise StoreError(f"cannot read {where}: {error.strerror}") from error
    if most_bytes is not None and len(data) > most_bytes:
        raise refuse(f"{where} has more than {most_bytes} bytes, the most that is read of it")
    return data


def _read(file: BinaryIO, most: int) -> bytes:
    """Up to `most` bytes, in pieces: one read may give fewer, and memory is for what there is."""
    data = bytearray()
    while len(data) < most and (piece := file.read(min(_PIECE_BYTES, most - len(data)))):
        data += piece
    return bytes(data)


class NotRegularError(OSError):
    """A pipe, a socket or a device where a file should be."""


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, opened without waiting. Raises OSError, NotRegularError among it."""
    # A pipe without a writer would block the plain open for ever.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NotRegularError(_NOT_REGULAR) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegularError(_NOT_REGULAR)
    return open(descriptor, "rb", buffering=0)
