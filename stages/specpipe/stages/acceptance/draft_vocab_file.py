"""A ready draft vocabulary, as other programs write it. Pickled files (.pt, .bin) are never opened.

Legend: V target vocabulary, D draft vocabulary.
"""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.foreign import foreign_call
from specpipe.stages.untrusted.tensors import load_tensors

_INTEGERS = (torch.int16, torch.int32, torch.int64)


def read_vocab_file(path: Path, vocab_size: int) -> VocabMap:
    """The map in a file:

    - `.safetensors` with d2t (offsets: target id minus draft id), t2d (bool [V]), or both;
    - `.npy` with a bool [V] (t2d), with offsets if the name says d2t, else with target ids. A
      t2d.npy beside d2t.npy must agree with it.

    Raises ConfigError where there is no such file, where it does not hold one ascending map, or
    where it is of another vocabulary than the target's.
    """
    if path.suffix not in (".safetensors", ".npy"):
        raise ConfigError(
            f"draft vocabulary {path}: neither .safetensors nor .npy; pickled files run code when"
            " they are opened: save its d2t and t2d as one of these"
        )
    with foreign_call(f"draft vocabulary {path} cannot be read", ConfigError):
        tensors = _read(path)
    try:
        return vocab_map(tensors, vocab_size)
    except IntegrityError as error:
        raise ConfigError(f"draft vocabulary {path}: {error}") from None


def vocab_map(tensors: dict[str, Tensor], vocab_size: int) -> VocabMap:
    """From d2t, t2d or both; raises IntegrityError where they are not one map of this target."""
    d2t, t2d = tensors.get("d2t"), tensors.get("t2d")
    if d2t is None and t2d is None:
        raise IntegrityError("it holds neither d2t nor t2d")
    if t2d is not None and (t2d.dtype != torch.bool or t2d.shape != (vocab_size,)):
        raise IntegrityError(
            f"t2d is {_described(t2d)}, but must be bool [{vocab_size}], the target's vocabulary"
        )
    if d2t is None:
        assert t2d is not None
        ids_D = t2d.nonzero().flatten()
        d2t = ids_D - torch.arange(len(ids_D))
    if d2t.dtype not in _INTEGERS or d2t.ndim != 1 or not 0 < len(d2t) <= vocab_size:
        raise IntegrityError(
            f"d2t is {_described(d2t)}, but must hold 1 to {vocab_size} whole numbers"
        )
    d2t = d2t.long()
    if t2d is None:
        ids_D = d2t + torch.arange(len(d2t))
        t2d = torch.zeros(vocab_size, dtype=torch.bool)
        t2d[ids_D[(ids_D >= 0) & (ids_D < vocab_size)]] = True
    return VocabMap.from_tensors({"d2t": d2t, "t2d": t2d})


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        tensors = load_tensors(path, f"draft vocabulary {path}", ConfigError)
        return {name: tensor for name, tensor in tensors.items() if name in ("d2t", "t2d")}
    tensor = _array(path)
    if tensor.dtype == torch.bool:
        return {"t2d": tensor}
    if "d2t" not in path.stem:
        return {"d2t": tensor - torch.arange(len(tensor))}
    beside = path.with_stem(path.stem.replace("d2t", "t2d"))
    tensors = {"d2t": tensor}
    if beside.exists():
        tensors["t2d"] = _array(beside)
    return tensors


def _array(path: Path) -> Tensor:
    """A .npy file, by the reader of that format alone: numpy's other one knows pickles too."""
    where = f"draft vocabulary {path} cannot be read"
    file = io.BytesIO(read_file(path, ConfigError, where=where))
    values = np.lib.format.read_array(file, allow_pickle=False)  # type: ignore[no-untyped-call]
    return torch.from_numpy(values)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
