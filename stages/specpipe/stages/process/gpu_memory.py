"""Running out of a GPU's memory, as an error that says what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from specpipe.schemas.errors import ConfigError


@contextmanager
def enough_gpu_memory(what: str, advice: str) -> Iterator[None]:
    """Raise ConfigError where what is done inside does not fit."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(f"out of GPU memory {what}: {advice}") from error
