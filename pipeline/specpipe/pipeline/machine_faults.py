"""Faults of the machine that reach the top of a command: rights, disk, memory, processes."""

import errno

from specpipe.schemas.errors import StoreError
from specpipe.stages.storage.store.faults import advice
from specpipe.stages.untrusted.foreign import OF_THE_DISK, one_line

_OF_THE_MACHINE = (*OF_THE_DISK, errno.ENOMEM, errno.EAGAIN)
_MEMORY_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to map segment",
    "can't start new thread",
)
"""Of errors that torch, numpy and the loader of shared libraries raise for lack of memory."""


def machine_fault(error: BaseException) -> StoreError | None:
    """The error as one of the tree, where the machine is at fault and not specpipe; else None."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS):
        return StoreError(
            f"this machine has too little memory for it ({one_line(error)}): free some or lift the"
            " limit (ulimit -v, a container's), and run the same command again"
        )
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        file = f": {error.filename}" if error.filename is not None else ""
        return StoreError(f"{error.strerror}{file}; {advice(error)}")
    return None
