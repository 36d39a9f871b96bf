"""The target's last decoder layer, copied from its checkpoint into a dump's `target/` folder.

A drafter of the same kind of layer may begin with it (drafters/parts/eagle/warm_start.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from specpipe.schemas.records.dump import LAST_LAYER_FILE
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.objects import put_object
from specpipe.stages.target.files.identity import read_config
from specpipe.stages.target.files.location import weight_files
from specpipe.stages.target.head.verifier_head import Read
from specpipe.stages.untrusted.tensors import load_tensors, num_bytes_of, opened_tensors

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Decoder layers that are computed as the drafters' are (biases aside)."""

_FLOATS = frozenset({torch.bfloat16, torch.float16, torch.float32})


def save_last_layer(source: Path, folder: Folder) -> None:
    """Write last_layer.safetensors of the target in a local folder; nothing of a target whose
    layers are of another kind, or quantised."""
    tensors = {name: file.get_tensor(name) for file, name in _own(source)}
    if tensors and all(tensor.dtype in _FLOATS for tensor in tensors.values()):
        put_object(folder, LAST_LAYER_FILE, save_tensors(dict(sorted(tensors.items()))))


def last_layer_bytes(source: Path) -> tuple[int, int]:
    """Files that `save_last_layer` writes, and about how many bytes; without weights on this disk,
    none are counted for them."""
    num_bytes = sum(num_bytes_of(file, name) for file, name in _own(source))
    return (1 if num_bytes else 0), num_bytes


def load_last_layer(read: Read) -> dict[str, Tensor]:
    """What `save_last_layer` wrote, tensors under the checkpoint's names.

    Raises IntegrityError where the file is missing or damaged.
    """
    return load_tensors(read(LAST_LAYER_FILE), f"{LAST_LAYER_FILE} of the dump's target")


def layer_prefix(number: int) -> str:
    """Of the names that a checkpoint has for a layer's tensors; the first is 0."""
    return f"model.layers.{number}."


def _own(source: Path) -> Iterator[tuple[Any, str]]:
    """The tensors of the last layer, each as an open file and a name in it; of pickled weights,
    which vLLM loads, none."""
    config = read_config(source)
    if config.get("model_type") not in MODEL_TYPES or config.get("quantization_config"):
        return
    if not any(source.glob("*.safetensors")):
        return
    prefix = layer_prefix(int(config["num_hidden_layers"]) - 1)
    for path in weight_files(source):
        with opened_tensors(path, f"target {source}: {path.name}") as file:
            for name in sorted(file.keys()):
                if name.startswith(prefix):
                    yield file, name
