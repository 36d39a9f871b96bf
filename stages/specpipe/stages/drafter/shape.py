"""The shape of a drafter, from the target's configuration and the training settings."""

from typing import Any

from transformers import PretrainedConfig

from specpipe.schemas.checkpoint import DrafterShape
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
    """One Llama-style layer of the target's width, heads and rope."""
    text = target.get_text_config()
    num_heads = text.num_attention_heads
    return DrafterShape(
        hidden_size=text.hidden_size,
        intermediate_size=settings.intermediate_size
        or getattr(text, "intermediate_size", None)
        or 4 * text.hidden_size,
        num_attention_heads=num_heads,
        num_key_value_heads=getattr(text, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // num_heads,
        rms_norm_eps=getattr(text, "rms_norm_eps", 1e-6),
        rope_parameters=_rope(text),
        max_position_embeddings=text.max_position_embeddings,
        vocab_size=vocab_size,
        draft_vocab_size=draft_vocab_size,
        aux_layers=aux_layers,
        norm_before_residual=settings.norm_before_residual,
        norm_before_fc=settings.norm_before_fc,
        fc_norm=settings.fc_norm,
        norm_output=settings.norm_output,
    )


def _rope(text: PretrainedConfig) -> dict[str, Any]:
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
        return dict(DEFAULT_ROPE)
    return {key: value for key, value in rope.items() if key != "partial_rotary_factor"}
