"""The rope parameters of a drafter: the keys of each rope type, and the values from the target.

A drafter's attention is a Llama layer's: it turns whole heads, at one position per token. Training
(transformers) passes over keys that a rope type does not have, and engines may not: vLLM builds
M-RoPE from `mrope_section`, and turns a part of each head by `partial_rotary_factor`. So a rope has
the keys of its type, and no others.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_COMMON = frozenset({"rope_type", "rope_theta"})
_NEEDED = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset({"factor", "original_max_position_embeddings"}),
    "dynamic": frozenset({"factor"}),
    "longrope": frozenset({"short_factor", "long_factor", "original_max_position_embeddings"}),
    "proportional": frozenset[str](),
}
"""By rope type that both transformers and engines have for a Llama layer."""
_OPTIONAL = {
    "yarn": frozenset(
        {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
    ),
    "longrope": frozenset({"attention_factor", "factor"}),
}

_POSITIVE = frozenset({"rope_theta", "factor", "original_max_position_embeddings"})
"""Any other value makes the angles NaN, or none."""

_NOT_LENT = frozenset({"dynamic", "longrope", "proportional"})
"""The angles of the first two depend on the longest sequence seen: a sample's result would depend
on the samples that it is packed with. The third is the default where whole heads are turned, and
not every engine knows its name."""

FIXED_LENGTH = frozenset({"yarn", "dynamic", "longrope"})
"""Types whose angles depend on the longest text that an engine is started for: vLLM does not raise
such a drafter's to the target's, and lowers the server's instead."""


def lent_rope(text: PretrainedConfig, theta: float | None) -> dict[str, Any]:
    """The target's rope where the drafter's layer can have it, else the default one, same theta.

    Targets with a rope per layer type (Gemma 3) lend the one of their full-attention layers. What
    belongs to the target's attention alone is left out: a partial rotation, the sections of M-RoPE.
    """
    given = _of_full_attention(getattr(text, "rope_parameters", None) or {})
    base = given.get("rope_theta") or DEFAULT_ROPE["rope_theta"]
    rope = own_keys(given) | {"rope_theta": base}
    rope_type = rope["rope_type"]
    if rope_type == "yarn" and "factor" not in rope and "original_max_position_embeddings" in rope:
        # DeepSeek's way: by how much the target is longer than what it was trained for.
        original = rope["original_max_position_embeddings"]
        rope["factor"] = text.max_position_embeddings / original
    is_lent = rope_type in _NEEDED and rope_type not in _NOT_LENT
    if not is_lent or not _NEEDED[rope_type] <= set(rope):
        rope = {"rope_type": "default", "rope_theta": base}
    if "factor" in rope:
        rope["factor"] = float(rope["factor"])  # vLLM's linear scaling takes no integer
    return rope if theta is None else rope | {"rope_theta": theta}


def own_keys(rope: Mapping[str, Any]) -> dict[str, Any]:
    """A rope without the keys that its type does not have, or that say nothing (null)."""
    rope_type = rope.get("rope_type") or "default"
    known = _known(rope_type)
    kept = {key: value for key, value in rope.items() if key in known and value is not None}
    return {"rope_type": rope_type} | kept


def foreign_keys(rope: Mapping[str, Any]) -> list[str]:
    """The keys that the rope's type does not have, sorted."""
    return sorted(set(rope) - _known(rope.get("rope_type") or "default"))


def rope_problems(rope: Mapping[str, Any]) -> list[str]:
    """What an engine would take otherwise than training did, or not at all, in words."""
    if "rope_type" not in rope or "rope_theta" not in rope:
        return ["rope_parameters must name rope_type and rope_theta"]
    rope_type = rope["rope_type"]
    if rope_type not in _NEEDED:
        return [
            f"rope_type {rope_type!r} is none of {', '.join(_NEEDED)}: a drafter's layer has no"
            " such rope"
        ]
    if missing := sorted(_NEEDED[rope_type] - set(rope)):
        return [f"rope_parameters of type {rope_type!r} lack {', '.join(missing)}"]
    if wrong := [
        f"{key} {rope[key]!r}" for key in _POSITIVE & set(rope) if not _positive(rope[key])
    ]:
        return [f"rope_parameters: {', '.join(sorted(wrong))} must be a positive number"]
    if foreign := foreign_keys(rope):
        return [
            f"rope_parameters have {', '.join(foreign)}, which rope type {rope_type!r} does not"
            " have: training passes over such keys, and engines may build another rope from them"
        ]
    return []


def rope_scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rope as engines before transformers 5 read it, beside `rope_theta`."""
    if rope.get("rope_type", "default") == "default":
        return None
    return {key: value for key, value in rope.items() if key != "rope_theta"}


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < float("inf")


def _known(rope_type: str) -> frozenset[str]:
    needed = _NEEDED.get(rope_type, frozenset())
    return _COMMON | needed | _OPTIONAL.get(rope_type, frozenset())


def _of_full_attention(rope: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rope itself, or that of the full-attention layers where each layer type has its own."""
    by_layer_type = [value for value in rope.values() if isinstance(value, Mapping)]
    if not by_layer_type:
        return rope if "full_attention" not in rope else {}
    full: Mapping[str, Any] = rope.get("full_attention") or by_layer_type[0]
    return full
