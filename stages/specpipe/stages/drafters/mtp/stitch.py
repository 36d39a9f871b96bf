"""The target's checkpoint with the tensors of a trained MTP layer in the place of its own."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specpipe.schemas.drafters.mtp import MtpShape
from specpipe.schemas.drafters.mtp_families import num_mtp_layers, our_name
from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.artifact import Artifact
from specpipe.stages.drafters.mtp.artifact import BesideTarget
from specpipe.stages.drafters.mtp.shape import shape_of_config
from specpipe.stages.target.files.identity import read_config
from specpipe.stages.target.files.location import WEIGHTS_INDEX, weight_files
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.json_text import parse_object
from specpipe.stages.untrusted.tensors import opened_tensors

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def stitch(artifact: Artifact, target: Path, out: Path) -> None:
    """Copy the folder `target` to `out`, which must not exist, with the artifact's tensors.

    Nothing else changes: they go where the checkpoint has those of its own layer, in its dtypes; of
    a checkpoint that has none, behind its last file. Raises ConfigError where the target is not the
    artifact's, or an engine would not draft with the layer.
    """
    shape = artifact.shape
    assert isinstance(shape, MtpShape)
    _check(shape, target, artifact.folder)
    tensors = {BesideTarget().stored_name(n): t for n, t in artifact.tensors.items()}
    files = weight_files(target)
    places = _places(files, shape)
    missing = sorted(set(places) - set(tensors))
    new = sorted(set(tensors) - set(places))
    if missing or (places and new):
        raise ConfigError(
            f"target {target} has an MTP layer of other tensors than artifact {artifact.folder}:"
            f" {', '.join((missing or new)[:3])}; serve the artifact beside it"
        )
    shutil.copytree(target, out)
    for path in files:
        own = {name: t for name, t in tensors.items() if places.get(name, files[-1]) == path}
        if own:
            _put_in(out / path.name, own, target)
    if new and (out / WEIGHTS_INDEX).is_file():
        _list_in_index(out / WEIGHTS_INDEX, {n: tensors[n] for n in new}, files[-1].name)


def _check(shape: MtpShape, target: Path, artifact: Path) -> None:
    config = read_config(target)
    own = shape_of_config(config)
    count = num_mtp_layers(own.of, config)
    if own.family != shape.family or any(
        getattr(own, name) != getattr(shape, name)
        for name in ("target_hidden_size", "vocab_size", "aux_layers")
    ):
        raise ConfigError(f"target {target} is not the one that artifact {artifact} is for")
    if count != 1:
        raise ConfigError(
            f"target {target} says {own.of.count_key} {count}: an engine would not draft each step"
            " with this one layer; serve the artifact beside the target"
        )


def _places(files: list[Path], shape: MtpShape) -> dict[str, Path]:
    """The file of each tensor of the checkpoint's MTP layer."""
    places = {}
    for path in files:
        with opened_tensors(path, f"target {path}", ConfigError) as file:
            for name in sorted(file.keys()):
                if our_name(shape.of, name, shape.num_target_layers) is not None:
                    places[name] = path
    return places


def _put_in(path: Path, own: Mapping[str, Tensor], target: Path) -> None:
    with opened_tensors(path, f"target {target}: {path.name}", ConfigError) as file:
        metadata = file.metadata()
    stored = load_file(path)
    for name, tensor in own.items():
        before = stored.get(name)
        if before is not None and (before.shape != tensor.shape or before.dtype not in _FLOATS):
            raise ConfigError(
                f"target {target}: {name} is {before.dtype} {list(before.shape)}, the artifact's"
                f" {list(tensor.shape)}"
            )
        stored[name] = tensor if before is None else tensor.to(before.dtype)
    path.unlink()
    save_file(stored, path, metadata=metadata)


def _list_in_index(index: Path, new: Mapping[str, Tensor], file: str) -> None:
    values: dict[str, Any] = parse_object(read_file(index), str(index))
    values["weight_map"] |= dict.fromkeys(new, file)
    values["weight_map"] = dict(sorted(values["weight_map"].items()))
    total = values.get("metadata", {}).get("total_size")
    if isinstance(total, int):
        added = sum(tensor.numel() * tensor.itemsize for tensor in new.values())
        values["metadata"]["total_size"] = total + added
    index.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
