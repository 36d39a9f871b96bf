"""The shape of a drafter's decoder layers, from the target's configuration and the settings."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor
from transformers import PretrainedConfig

from specpipe.schemas.drafters.base import LAYER_TYPES, LayerSettings, LayerShape
from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.parts.rope import lent_rope, rope_problems
from specpipe.stages.untrusted.foreign import foreign_call

Shape = TypeVar("Shape", bound=LayerShape)

_LENGTHS = ("max_position_embeddings", "max_seq_len", "seq_length")
_SIZES = (
    "num_layers",
    "hidden_size",
    "target_hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "vocab_size",
    "draft_vocab_size",
)
_USUAL_LENGTH = 2048
"""Of a target whose config has no maximum, as ALiBi's positions have none (BLOOM)."""


def values_of_layers(
    target: PretrainedConfig, settings: LayerSettings, hidden_size: int
) -> dict[str, Any]:
    """Fields of a LayerShape: layers of the target's heads and rope, where the settings do not say
    otherwise, and of its MLP's width in proportion."""
    text = target.get_text_config(decoder=True)
    layer = _first_layer(text)
    heads, kv_heads, head_dim = _heads(layer, settings, hidden_size)
    intermediate_size = _number(getattr(layer, "intermediate_size", None)) or 4 * text.hidden_size
    return {
        "num_layers": settings.num_layers,
        "sliding_window": settings.sliding_window,
        "hidden_size": hidden_size,
        "target_hidden_size": text.hidden_size,
        "intermediate_size": settings.intermediate_size
        or max(1, intermediate_size * hidden_size // text.hidden_size),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": getattr(text, "rms_norm_eps", 1e-6),
        "rope_parameters": lent_rope(text, settings.rope_theta),
        "max_position_embeddings": longest_of(text),
    }


def fresh_shape(
    kind: type[Shape], target: PretrainedConfig, settings: LayerSettings, further: dict[str, Any]
) -> Shape:
    """Layers as `values_of_layers` makes them, with the `further` fields of the shape.

    Raises ConfigError where the settings do not fit each other, or the target's config none.
    """
    width = settings.hidden_size_or(target.get_text_config(decoder=True).hidden_size)
    with foreign_call("the target's config fits no drafter", ConfigError):
        shape = kind.model_validate(values_of_layers(target, settings, width) | further)
    check_layers(shape)
    return shape


def check_layers(shape: LayerShape) -> None:
    """Raises ConfigError for a shape that no drafter can have."""
    if problems := layer_problems(shape):
        raise ConfigError("; ".join(problems))


def layer_problems(shape: LayerShape) -> list[str]:
    """Values that no drafter can have, in words."""
    too_small = [
        f"{name} is {getattr(shape, name)}, not positive"
        for name in _SIZES
        if getattr(shape, name) < 1
    ]
    if too_small:
        return too_small
    problems = []
    heads, groups = shape.num_attention_heads, shape.num_key_value_heads
    if heads % groups:
        problems.append(
            f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
        )
    if shape.head_dim % 2:
        problems.append(f"head_dim {shape.head_dim} is odd: rope turns pairs of dimensions")
    if shape.sliding_window is not None and shape.sliding_window < 1:
        problems.append(f"sliding_window is {shape.sliding_window}, not positive")
    if shape.rms_norm_eps < 0:
        problems.append(f"rms_norm_eps is {shape.rms_norm_eps}, negative: norms would be NaN")
    return problems


def stored_layer_problems(shape: LayerShape, weights: Mapping[str, Tensor]) -> list[str]:
    """Why training never leaves these weights with this shape, in words."""
    problems = layer_problems(shape) + rope_problems(shape.rope_parameters)
    if shape.hidden_act != "silu" or shape.layer_type not in LAYER_TYPES:
        problems.append(f"there is no drafter of the kinds {(shape.hidden_act, shape.layer_type)}")
    if not shape.aux_layers:
        problems.append("it takes no layer of the target")
    num_layers = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    if num_layers != shape.num_layers:
        problems.append(f"it claims {shape.num_layers} layers, and has weights of {num_layers}")
    return problems


def longest_of(text: PretrainedConfig) -> int:
    """Most tokens of a text that the target takes."""
    named = (getattr(text, name, None) for name in _LENGTHS)
    return next((length for length in named if isinstance(length, int)), _USUAL_LENGTH)


def _first_layer(text: PretrainedConfig) -> PretrainedConfig:
    """The settings of the target's first layer, where its layers differ (Gemma 4's heads: its full
    attention has wider ones than every attention kernel takes)."""
    if not getattr(text, "is_heterogeneous", False):
        return text
    layers: Sequence[PretrainedConfig] = text.per_layer_config
    return layers[0]


def _number(value: int | Sequence[int] | None) -> int | None:
    """The first layer's where each layer has its own (Gemma 3n)."""
    return value[0] if isinstance(value, Sequence) else value


def _heads(
    layer: PretrainedConfig, settings: LayerSettings, hidden_size: int
) -> tuple[int, int, int]:
    """Query heads, key/value heads and head size.

    A drafter of another width keeps the head size, and has as many heads as it is wide.
    """
    target_heads = layer.num_attention_heads
    head_dim = getattr(layer, "head_dim", None) or layer.hidden_size // target_heads
    head_dim = settings.head_dim or head_dim
    heads = settings.num_attention_heads or (
        target_heads
        if getattr(settings, "hidden_size", None) is None
        else max(1, hidden_size // head_dim)
    )
    most = min(heads, getattr(layer, "num_key_value_heads", None) or target_heads)
    groups = next(groups for groups in range(most, 0, -1) if heads % groups == 0)
    return heads, settings.num_key_value_heads or groups, head_dim
