"""A bound on what a call may allocate, for libraries that allocate what a file claims."""

import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()
_STATM = "/proc/self/statm"


@contextmanager
def bounded_memory(most_bytes: int) -> Iterator[None]:
    """Let the process map at most so many bytes more than now; raises MemoryError beyond.

    The bound is on address space (RLIMIT_AS), and so on all threads: it suits stages that read
    input, not a training that allocates at the same time. On systems without /proc it is none.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    with _LOCK:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        bound = _mapped_bytes() + most_bytes
        tighter = [bound, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_AS, (min(tighter), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _mapped_bytes() -> int:
    with open(_STATM, "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
