"""The decoder layers that an artifact's config describes, whatever program wrote it.

Ours and speculators' configs have the layers' settings in `transformer_layer_config`; others have
them at the top. Layer ids: `eagle_aux_hidden_state_layer_ids` at the top counts as we do; inside
`eagle_config` (SGLang's place) it names a layer's output by the layer, one less.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from specpipe.schemas.drafters.base import LayerShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact import OfTarget
from specpipe.stages.drafters.parts.rope import foreign_keys, own_keys, rope_problems

LAYER_IDS = "eagle_aux_hidden_state_layer_ids"

BUFFERS = ("rotary_emb.inv_freq",)
"""Ends of names that hold what the config says anyway."""


def layer_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where an artifact's config has the settings of its layers."""
    layer: Mapping[str, Any] = config.get("transformer_layer_config", config)
    return layer


def nested_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """SGLang's part of a config."""
    nested: Mapping[str, Any] = config.get("eagle_config") or {}
    return nested


def layer_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The auxiliary layers that it names; None where it names none."""
    own = tuple(config.get(LAYER_IDS) or ())
    nested = tuple(layer + 1 for layer in nested_config(config).get(LAYER_IDS) or ())
    if own and nested and own != nested:
        raise ConfigError(
            f"artifact {folder}: {LAYER_IDS} {list(own)} disagrees with that of eagle_config,"
            f" {[layer - 1 for layer in nested]}, which must be one less each"
        )
    return own or nested or None


def layer_values(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a LayerShape that the layers' settings give; KeyError where one is missing."""
    layer = layer_config(config)
    heads = layer["num_attention_heads"]
    return {
        "layer_type": "qwen3" if layer.get("model_type") == "qwen3" else "llama",
        "num_layers": layer.get("num_hidden_layers", 1),
        "sliding_window": _sliding_window(folder, layer),
        "hidden_size": layer["hidden_size"],
        "intermediate_size": layer["intermediate_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": layer.get("num_key_value_heads") or heads,
        "head_dim": layer.get("head_dim") or layer["hidden_size"] // heads,
        "rms_norm_eps": layer.get("rms_norm_eps", 1e-6),
        "hidden_act": layer.get("hidden_act", "silu"),
        "rope_parameters": _rope(folder, layer),
        "max_position_embeddings": layer["max_position_embeddings"],
    }


def _sliding_window(folder: Path, layer: Mapping[str, Any]) -> int | None:
    window: int | None = layer.get("sliding_window")
    if window is not None and not (isinstance(window, int) and window > 0):
        raise ConfigError(
            f"artifact {folder}: {CONFIG_FILE}: sliding_window is {window!r}, not positive"
        )
    return window if layer.get("layer_types") else None


def check_sizes(folder: Path, shape: LayerShape, tensors: Mapping[str, Tensor]) -> None:
    """Raise ConfigError for sizes that none of the tensors has: a model of any size would be built
    to compare them."""
    longest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    sizes = {
        "num_hidden_layers": (shape.num_layers, len(tensors)),
        "hidden_size": (shape.hidden_size, longest),
        "intermediate_size": (shape.intermediate_size, longest),
        "num_attention_heads": (shape.num_attention_heads * shape.head_dim, longest),
        "draft_vocab_size": (shape.draft_vocab_size, max(longest, shape.vocab_size)),
    }
    for name, (size, most) in sizes.items():
        if size > most:
            raise ConfigError(
                f"artifact {folder} is not the drafter that its config describes: {name} makes"
                f" {size}, and its weights have {most} at most"
            )


def target_sizes(
    folder: Path, config: Mapping[str, Any], target: OfTarget | None
) -> tuple[int, int]:
    """The target's vocabulary and width."""
    layer = layer_config(config)
    width = config.get("target_hidden_size") or layer.get("hidden_size")
    vocab_size = layer.get("vocab_size", target.vocab_size if target else None)
    if target and (vocab_size, width) != (target.vocab_size, target.hidden_size):
        raise ConfigError(
            f"artifact {folder} is for a target with a vocabulary of {vocab_size} and {width} wide"
            f" states, not for this one with {target.vocab_size} and {target.hidden_size}"
        )
    if vocab_size is None or width is None:
        raise KeyError("vocab_size" if vocab_size is None else "hidden_size")
    return vocab_size, width


def _rope(folder: Path, layer: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' rope_parameters, also from the older rope_theta and rope_scaling, without keys
    that their type does not have.

    Raises ConfigError for a rope that no drafter's layer has.
    """
    given = given_rope(layer)
    if given.get("partial_rotary_factor") not in (None, 1):
        raise ConfigError(
            f"artifact {folder}: its rope has a partial_rotary_factor of"
            f" {given['partial_rotary_factor']}, but a drafter's layer turns whole heads: with"
            " which rope it was trained cannot be told"
        )
    rope = own_keys(given)
    if problems := rope_problems(rope):
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE}: {'; '.join(problems)}")
    return rope


def given_rope(layer: Mapping[str, Any]) -> dict[str, Any]:
    given = layer.get("rope_parameters")
    keys = ("rope_parameters",) if given else ("rope_theta", "rope_scaling")
    values = {key: layer[key] for key in keys if layer.get(key) is not None}
    rope: dict[str, Any] = LlamaConfig(**values).to_dict()["rope_parameters"]
    return rope


def own_names(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names; raises ConfigError where two would have the same one."""
    named = {}
    for name, tensor in tensors.items():
        ours = own_name(name)
        if ours in named:
            raise ConfigError(f"artifact {folder}: two of its tensors are {ours}")
        if not name.endswith(BUFFERS):
            named[ours] = tensor
    return named


def own_name(name: str) -> str:
    """Ours of a tensor's name: one layer may be called `midlayer`, and all may be in `model`."""
    return name.removeprefix("model.").replace("midlayer.", "layers.0.", 1)


def rope_left_out(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of a config's rope that are passed over."""
    return tuple(foreign_keys(given_rope(layer_config(config))))
