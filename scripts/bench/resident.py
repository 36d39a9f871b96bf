"""Resident memory of this process, as Linux counts it. Standard library only."""

import ctypes
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes, after the allocator has given back what is free."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def forget_peak() -> None:
    """The peak counts from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes since the start or `forget_peak`.

    `ru_maxrss` will not do in a child: it begins with what its parent held.
    """
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no {name}")
