"""Safetensors files of strangers: named tensors of floating point or plain integers."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load, load_file
from torch import Tensor

from specpipe.schemas.errors import IntegrityError, SpecpipeError
from specpipe.stages.untrusted.files import open_regular
from specpipe.stages.untrusted.foreign import foreign_call


def load_tensors(
    source: Path | bytes, where: str, refuse: type[SpecpipeError] = IntegrityError
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of its bytes.

    Raises `refuse`, naming `where`, if it is none; StoreError where the disk fails. The format's
    own header says every size, and the library checks it against the file before it allocates.
    """
    with foreign_call(f"{where} is no readable safetensors file", refuse):
        if isinstance(source, bytes):
            tensors: dict[str, Tensor] = load(source)
            return tensors
        open_regular(source).close()  # a pipe in its place would never end
        return dict(load_file(source))


@contextmanager
def opened_tensors(
    path: Path, where: str, refuse: type[SpecpipeError] = IntegrityError
) -> Iterator[Any]:
    """safetensors' own reader of a file, for its names and for one tensor after the other.

    Raises as `load_tensors` does, whatever is read of it included.
    """
    with foreign_call(f"{where} is no readable safetensors file", refuse):
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            yield file


def num_bytes_of(file: Any, name: str) -> int:
    """About the size of a tensor in a file that `opened_tensors` gave, which is not read for it."""
    part = file.get_slice(name)
    shape: list[int] = part.get_shape()
    return _ITEMSIZES.get(part.get_dtype(), 4) * math.prod(shape)


_ITEMSIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "I8": 1, "U8": 1}
