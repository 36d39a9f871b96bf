"""First weights from the target's own last layers, read without loading the target.

The drafter's layers become the target's last ones; the first takes the embedding with weight 0. fc
hands on the highest auxiliary state, and the final norm is the target's. What a drafter then says
is what the target would, were its last layers to follow the auxiliary layer at once.

Legend: T target's hidden size, H hidden size.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from specpipe.schemas.drafters.base import LayerShape
from specpipe.schemas.errors import ConfigError, IdentityError
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.files.identity import read_config
from specpipe.stages.target.files.location import local_folder, weight_files
from specpipe.stages.target.head.verifier_head import load_norm
from specpipe.stages.untrusted.tensors import opened_tensors

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Decoder layers that are computed as the drafter's are (biases aside)."""

FINAL_NORM = "model.norm.weight"


@torch.no_grad()
def warm_start(model: nn.Module, shape: LayerShape, target: str, dump: Dump) -> None:
    """Replace the weights of fc, layers and norm; the rest of the model stays.

    `target` is the checkpoint (a folder, or a hub id) of the dump's target. Raises ConfigError
    where its layers are of another kind or shape than the drafter's, IdentityError where its
    final norm is not that of the dump's target, IntegrityError where a file of it is damaged.
    """
    folder = local_folder(target)
    config = read_config(folder)
    if config.get("model_type") not in MODEL_TYPES:
        raise ConfigError(
            f"warm start from {target}: its layers are of type {config.get('model_type')!r}, the"
            f" drafter's are as those of {', '.join(sorted(MODEL_TYPES))}"
        )
    if config["model_type"] == "qwen3" and shape.layer_type != "qwen3":
        raise ConfigError(
            f"warm start from {target}: its queries and keys are normed; give --layer-type qwen3"
        )
    if shape.projects_embedding:
        raise ConfigError(
            f"warm start from {target}: its layers are {shape.target_hidden_size} wide, the"
            f" drafter's {shape.hidden_size}"
        )
    read = _reader(folder)
    norm_H = read(FINAL_NORM)
    if not torch.equal(norm_H.float(), load_norm(dump.target_file).float()):
        raise IdentityError(
            f"warm start from {target}: its final norm is not that of the dump's target,"
            f" {dump.identity.target.name}"
        )
    first = dump.identity.target.num_layers - shape.num_layers
    weights = {"norm.weight": norm_H}
    for name in model.state_dict():
        if name.startswith("layers.") and not name.endswith("hidden_norm.weight"):
            _, number, rest = name.split(".", 2)
            weights[name] = read(f"model.layers.{first + int(number)}.{rest}")
    hidden_norm = "layers.0.input_layernorm.weight"
    # The drafter's hidden state takes the way that the layer's input took; the embedding's way in
    # begins at 0, and its norm as it is.
    weights["layers.0.hidden_norm.weight"] = weights.pop(hidden_norm)
    for which in "qkv":
        name = f"layers.0.self_attn.{which}_proj.weight"
        weights[name] = torch.cat([torch.zeros_like(weights[name]), weights[name]], dim=-1)
    blank = torch.zeros(shape.hidden_size, (shape.num_aux - 1) * shape.hidden_size)
    weights["fc.weight"] = torch.cat([blank, torch.eye(shape.hidden_size)], dim=-1)
    own = dict(model.named_parameters())
    wrong = [
        f"{name} {list(weight.shape)} instead of {list(own[name].shape)}"
        for name, weight in weights.items()
        if weight.shape != own[name].shape
    ]
    if wrong:
        raise ConfigError(
            f"warm start from {target}: {', '.join(wrong)}; leave the drafter's sizes"
            " as the target's"
        )
    for name, weight in weights.items():
        own[name].copy_(weight)


def _reader(folder: Path) -> Callable[[str], Tensor]:
    """A function that reads one tensor of a checkpoint by its name."""
    places: dict[str, Path] = {}
    for path in weight_files(folder):
        with opened_tensors(path, f"warm start from {path}: it") as file:
            places |= dict.fromkeys(file.keys(), path)

    def read(name: str) -> Tensor:
        if name not in places:
            raise ConfigError(f"warm start from {folder}: its weights hold no {name}")
        with opened_tensors(places[name], f"warm start from {places[name]}: it") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    return read
