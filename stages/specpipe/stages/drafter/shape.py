"""The shape of a drafter, from the target's configuration and the training settings."""

from typing import Any

from transformers import PretrainedConfig

from specpipe.schemas.checkpoint import DrafterShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.train_config import TrainConfig

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
DEPENDS_ON_LENGTH = frozenset({"dynamic", "longrope"})


def drafter_shape(
    target: PretrainedConfig,
    settings: TrainConfig,
    aux_layers: tuple[int, ...],
    vocab_size: int,
    draft_vocab_size: int,
) -> DrafterShape:
    """Layers of the target's width, heads and rope, where the settings do not say otherwise.

    Raises ConfigError where the settings do not fit each other.
    """
    text = target.get_text_config()
    hidden_size = settings.hidden_size or text.hidden_size
    heads, kv_heads, head_dim = _heads(text, settings, hidden_size)
    intermediate_size = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    shape = DrafterShape(
        layer_type=settings.layer_type,
        num_layers=settings.num_layers,
        sliding_window=settings.sliding_window,
        hidden_size=hidden_size,
        target_hidden_size=text.hidden_size,
        intermediate_size=settings.intermediate_size
        or max(1, intermediate_size * hidden_size // text.hidden_size),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=getattr(text, "rms_norm_eps", 1e-6),
        rope_parameters=_rope(text, settings.rope_theta),
        max_position_embeddings=text.max_position_embeddings,
        vocab_size=vocab_size,
        draft_vocab_size=draft_vocab_size,
        aux_layers=aux_layers,
        norm_before_residual=settings.norm_before_residual,
        norm_before_fc=settings.norm_before_fc,
        fc_norm=settings.fc_norm,
        norm_output=settings.norm_output,
    )
    check_shape(shape)
    return shape


def check_shape(shape: DrafterShape) -> None:
    """Raises ConfigError for a shape that no drafter can have."""
    heads, groups = shape.num_attention_heads, shape.num_key_value_heads
    if heads % groups:
        raise ConfigError(
            f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
        )
    if shape.head_dim % 2:
        raise ConfigError(f"head_dim {shape.head_dim} is odd: rope turns pairs of dimensions")


def _heads(text: PretrainedConfig, settings: TrainConfig, hidden_size: int) -> tuple[int, int, int]:
    """Query heads, key/value heads and head size.

    A drafter of another width keeps the head size, and has as many heads as it is wide.
    """
    target_heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // target_heads
    head_dim = settings.head_dim or head_dim
    heads = settings.num_attention_heads or (
        target_heads if settings.hidden_size is None else max(1, hidden_size // head_dim)
    )
    most = min(heads, getattr(text, "num_key_value_heads", None) or target_heads)
    groups = next(groups for groups in range(most, 0, -1) if heads % groups == 0)
    return heads, settings.num_key_value_heads or groups, head_dim


def _rope(text: PretrainedConfig, theta: float | None) -> dict[str, Any]:
    """The target's rope where the drafter's layer can have it, else the default one, same theta.

    Targets with a rope per layer type (Gemma 3) lend the one of their full-attention layers. A
    partial rotation is left out: it belongs to the target's attention, and the drafter has its own.
    Types whose angles depend on the longest sequence seen (dynamic, longrope) are not taken over:
    a sample's result would depend on the samples that it is packed with.
    """
    rope = getattr(text, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type", "default") in DEPENDS_ON_LENGTH:
        rope = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    if "rope_theta" not in rope:
        rope = DEFAULT_ROPE
    rope = {key: value for key, value in rope.items() if key != "partial_rotary_factor"}
    return rope if theta is None else rope | {"rope_theta": theta}
