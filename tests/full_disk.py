"""A disk that takes no more, for the process that asks."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_may_hold(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
