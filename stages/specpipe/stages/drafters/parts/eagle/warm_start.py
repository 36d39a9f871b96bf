"""First weights from the target's own last layers, read without loading the target.

The drafter's layers become the target's last ones; the first takes the embedding with weight 0. fc
hands on the highest auxiliary state; the norm before the lm_head is the target's already. What a
drafter then says is near to what the target would, were its last layers to follow the auxiliary
layer at once: the same where its norms on fc's input and on the residual are off, but for biases,
which drafters do not have.

Legend: H hidden size, h heads, E head size, O all heads together.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from specpipe.schemas.drafters.base import EagleSettings, LayerShape
from specpipe.schemas.errors import ConfigError, IdentityError, IntegrityError
from specpipe.schemas.records.dump import LAST_LAYER_FILE
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.files.identity import read_config
from specpipe.stages.target.files.location import local_folder, weight_files
from specpipe.stages.target.head.last_layer import (
    MODEL_TYPES,
    is_llamas,
    is_plain,
    layer_prefix,
    load_last_layer,
)
from specpipe.stages.target.head.verifier_head import load_norm
from specpipe.stages.untrusted.tensors import opened_tensors

FINAL_NORM = "model.norm.weight"

ReadTensor = Callable[[str], Tensor]
"""Reads a tensor by the name that the target's checkpoint has for it."""


@torch.no_grad()
def begin_with_last_layers(
    model: nn.Module,
    shape: LayerShape,
    dump: Dump,
    config: PreTrainedConfig,
    target: str | None,
    settings: EagleSettings,
) -> None:
    """Replace the weights of fc and the layers by those of the target's last layers.

    `config` is the target's. They come from the checkpoint `target` (a folder, or a hub id), where
    one is given: raises ConfigError where its layers are of another kind or shape than the
    drafter's, IdentityError where its final norm is not that of the dump's target, IntegrityError
    where a file of it is damaged. Else the last layer comes from the dump, where it holds one, that
    is of the drafter's kind and shape, for a drafter of one layer.
    """
    if target is not None:
        read: ReadTensor = cache(_of_checkpoint(shape, dump, target))
        if problem := _misfit(model, shape, config, read):
            raise ConfigError(
                f"warm start from {target}: {problem}; leave the drafter's sizes as the target's"
            )
    elif settings.fresh_layer or not _may_take_stored(shape, dump, config):
        return
    else:
        read = _stored(dump)
        if _misfit(model, shape, config, read):
            return
    own = dict(model.named_parameters())
    for name, weight in _first_weights(model, shape, config, read).items():
        own[name].copy_(weight)


def _may_take_stored(shape: LayerShape, dump: Dump, config: PreTrainedConfig) -> bool:
    """Whether the drafter's layer is computed as the stored one, if that has its sizes."""
    if not dump.has_target_file(LAST_LAYER_FILE) or shape.num_layers > 1:
        return False
    heads = shape.num_attention_heads, shape.num_key_value_heads
    has_its_heads = heads == (config.num_attention_heads, config.num_key_value_heads)
    is_its_kind = shape.layer_type != "qwen3" or config.model_type == "qwen3"
    return not shape.projects_embedding and has_its_heads and is_its_kind


def _stored(dump: Dump) -> ReadTensor:
    tensors = load_last_layer(dump.target_file)

    def read(name: str) -> Tensor:
        if name not in tensors:
            raise IntegrityError(f"{LAST_LAYER_FILE} of the dump's target holds no {name}")
        return tensors[name]

    return read


def _of_checkpoint(shape: LayerShape, dump: Dump, target: str) -> ReadTensor:
    folder = local_folder(target)
    config = read_config(folder)
    if not is_llamas(config):
        quantised = "quantised, " if config.get("quantization_config") else ""
        raise ConfigError(
            f"warm start from {target}: its layers are {quantised}of type"
            f" {config.get('model_type')!r}, the drafter's are as those of"
            f" {', '.join(sorted(MODEL_TYPES))}"
        )
    if shape.projects_embedding:
        raise ConfigError(
            f"warm start from {target}: its layers are {shape.target_hidden_size} wide, the"
            f" drafter's {shape.hidden_size}"
        )
    read = _reader(folder)
    if not torch.equal(read(FINAL_NORM).float(), load_norm(dump.target_file).float()):
        raise IdentityError(
            f"warm start from {target}: its final norm is not that of the dump's target,"
            f" {dump.identity.target.name}"
        )
    return read


def _first_weights(
    model: nn.Module, shape: LayerShape, config: PreTrainedConfig, read: ReadTensor
) -> dict[str, Tensor]:
    """Of the drafter's parameters, by their names."""
    first = config.num_hidden_layers - shape.num_layers
    weights = {ours: read(theirs) for ours, theirs in _layer_names(model, first).items()}
    for layer in range(shape.num_layers) if _norms_are_missing(shape, config) else ():
        norm_H = weights[f"layers.{layer}.input_layernorm.weight"].float()
        for which in "qk":
            name = f"layers.{layer}.self_attn.{which}_proj.weight"
            norm_E = read(f"{layer_prefix(first + layer)}self_attn.{which}_norm.weight")
            weights[name] = with_norm_in_it(weights[name].float(), norm_E.float(), norm_H)
    # The drafter's hidden state takes the way that the layer's input took; the embedding's way in
    # begins at 0, and its norm as it is.
    weights["layers.0.hidden_norm.weight"] = weights.pop("layers.0.input_layernorm.weight")
    for which in "qkv":
        name = f"layers.0.self_attn.{which}_proj.weight"
        weights[name] = torch.cat([torch.zeros_like(weights[name]), weights[name]], dim=-1)
    blank = torch.zeros(shape.hidden_size, (shape.num_aux - 1) * shape.hidden_size)
    weights["fc.weight"] = torch.cat([blank, torch.eye(shape.hidden_size)], dim=-1)
    return weights


def _layer_names(model: nn.Module, first: int) -> dict[str, str]:
    """The checkpoint's name of each parameter of the drafter's layers, whose first one is `first`
    in the target; biases have no place in a drafter."""
    names = {}
    for name in model.state_dict():
        if name.startswith("layers.") and not name.endswith("hidden_norm.weight"):
            _, number, rest = name.split(".", 2)
            names[name] = layer_prefix(first + int(number)) + rest
    return names


def _norms_are_missing(shape: LayerShape, config: PreTrainedConfig) -> bool:
    """Whether the target norms queries and keys, and the drafter does not."""
    return config.model_type == "qwen3" and shape.layer_type != "qwen3"


def with_norm_in_it(weight_OH: Tensor, norm_E: Tensor, input_norm_H: Tensor) -> Tensor:
    """A projection to queries or keys that gives what norms per head would, by their usual size.

    It is that of an input of unit variance in every channel, times the weight of its own norm.
    """
    weight_hEH = weight_OH.unflatten(0, (-1, len(norm_E)))
    size_h = (weight_hEH * input_norm_H).square().sum(-1).mean(-1).sqrt().clamp(min=1e-6)
    found_hEH: Tensor = weight_hEH * (norm_E / size_h[:, None])[..., None]
    return found_hEH.flatten(0, 1)


def _misfit(model: nn.Module, shape: LayerShape, config: PreTrainedConfig, read: ReadTensor) -> str:
    """Which of the target's tensors have another shape than the drafter's; empty where all fit."""
    own = dict(model.named_parameters())
    first = config.num_hidden_layers - shape.num_layers
    wanted = {theirs: list(own[ours].shape) for ours, theirs in _layer_names(model, first).items()}
    for which in "qkv":  # the first layer sees the embedding, too
        wanted[f"{layer_prefix(first)}self_attn.{which}_proj.weight"][-1] = shape.hidden_size
    if _norms_are_missing(shape, config):
        for layer in range(first, first + shape.num_layers):
            for which in "qk":
                wanted[f"{layer_prefix(layer)}self_attn.{which}_norm.weight"] = [shape.head_dim]
    return ", ".join(
        f"{name} {found} instead of {size}"
        for name, size in wanted.items()
        if (found := list(read(name).shape)) != size
    )


def _reader(folder: Path) -> ReadTensor:
    """Of a checkpoint; raises ConfigError for a name that it lacks, or a quantised tensor."""
    places: dict[str, Path] = {}
    for path in weight_files(folder):
        with opened_tensors(path, f"warm start from {path}: it") as file:
            places |= dict.fromkeys(file.keys(), path)

    def read(name: str) -> Tensor:
        if name not in places:
            raise ConfigError(f"warm start from {folder}: its weights hold no {name}")
        with opened_tensors(places[name], f"warm start from {places[name]}: it") as file:
            tensor: Tensor = file.get_tensor(name)
        if not is_plain({name: tensor}):
            raise ConfigError(f"warm start from {folder}: {name} is quantised ({tensor.dtype})")
        return tensor

    return read
