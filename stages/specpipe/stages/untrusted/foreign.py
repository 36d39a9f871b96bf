"""Calls of other packages' loaders with what a stranger wrote: any failure is one line of ours."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from specpipe.schemas.errors import SpecpipeError, StoreError

_LONGEST = 300
"""Most characters of a foreign message that are shown: some print a whole config."""

OF_THE_DISK = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
)
"""Errors of the operating system that say nothing against what was read or written."""


@contextmanager
def foreign_call(what: str, refuse: type[SpecpipeError]) -> Iterator[None]:
    """Turn whatever is raised within into `refuse`, saying "`what`: Type: message" in one line.

    `what` says what was tried, for example "target X: transformers cannot load it". Errors of the
    tree pass through. Raises StoreError where the disk or missing rights prevented it, whatever
    `refuse` is: that says nothing against what the stranger wrote.
    """
    try:
        yield
    except SpecpipeError:
        raise
    except OSError as error:
        if error.errno in OF_THE_DISK:
            raise StoreError(f"{what}: {error.strerror}: {error.filename}") from error
        raise refuse(f"{what}: {one_line(error)}") from error
    except MemoryError as error:
        raise refuse(f"{what}: it asks for more memory than there is") from error
    except Exception as error:  # loaders raise whatever their authors did not think of
        raise refuse(f"{what}: {one_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries in Rust; it is no Exception
            raise
        raise refuse(f"{what}: {one_line(error)}") from error


def first_bad_field(error: ValidationError) -> str:
    """The first value that pydantic refuses: its name, where it has one, and why."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else str(first["msg"])


def one_line(error: BaseException) -> str:
    """Type and message of an error in one line of bounded length; of values that pydantic refuses
    the first one's name and why."""
    if isinstance(error, ValidationError):
        return first_bad_field(error)
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
