"""One thread for targets so small that threads would wait for each other."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """In this process; children take `ENVIRONMENT`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
