"""The families of targets whose checkpoints have an MTP layer, as vLLM computes and names it.

Row j of the drafter takes the embedding of token x[j+1] and the target's last state at j, each
normed, side by side through a projection; one decoder layer; and a norm before the target's
lm_head. Each later step takes the output of the one before it as its state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class MtpFamily:
    """`{n}` in a name is the number of the target's layers."""

    name: str
    model_types: frozenset[str] = frozenset()
    architectures: frozenset[str] = frozenset()
    """Targets of the family, by the one or the other."""
    prefix: str = ""
    """Of the decoder layer's tensors."""
    modules: Mapping[str, str] | None = None
    """Names of what surrounds the layer; without `norm` the lm_head takes the layer's output."""
    hidden_first: bool = False
    """The projection takes [hidden; embedding], not [embedding; hidden]."""
    zeroes_first: bool = True
    """The embedding at position 0 is zero."""
    takes_normed: bool = True
    """The target's state comes after its final norm, not before."""
    feeds_normed: bool = True
    """The next step takes the normed output, not the layer's own."""
    norm_adds_one: bool = False
    """Norms multiply by 1 + w."""
    count_key: str = "num_nextn_predict_layers"
    """How many MTP layers there are, in the target's config."""


def _at(prefix: str, **modules: str) -> dict[str, str]:
    return {ours: f"{prefix}.{theirs}" for ours, theirs in modules.items()}


_NEXTN = _at(
    "model.layers.{n}",
    embed_norm="enorm",
    hidden_norm="hnorm",
    proj="eh_proj",
    norm="shared_head.norm",
)
_QWEN = _at(
    "mtp",
    embed_norm="pre_fc_norm_embedding",
    hidden_norm="pre_fc_norm_hidden",
    proj="fc",
    norm="norm",
)

FAMILIES: Mapping[str, MtpFamily] = {
    family.name: family
    for family in (
        MtpFamily(
            "mimo",
            architectures=frozenset({"MiMoForCausalLM"}),
            prefix="model.mtp_layers.0",
            modules=_at(
                "model.mtp_layers.0",
                embed_norm="token_layernorm",
                hidden_norm="hidden_layernorm",
                proj="input_proj",
                norm="final_layernorm",
            ),
            hidden_first=True,
            takes_normed=False,
        ),
        MtpFamily(
            "glm4_moe",
            architectures=frozenset({"Glm4MoeForCausalLM"}),
            prefix="model.layers.{n}",
            modules=_NEXTN,
            feeds_normed=False,
        ),
        MtpFamily(
            "ernie4_5_moe",
            model_types=frozenset({"ernie4_5_moe"}),
            prefix="model.mtp_block.0",
            modules=_at(
                "model",
                embed_norm="mtp_emb_norm.0",
                hidden_norm="mtp_hidden_norm.0",
                proj="mtp_linear_proj.0",
            ),
        ),
        MtpFamily(
            "qwen3_next",
            model_types=frozenset({"qwen3_next"}),
            prefix="mtp.layers.0",
            modules=_QWEN,
            zeroes_first=False,
            norm_adds_one=True,
        ),
        MtpFamily(
            "qwen3_5",
            model_types=frozenset({"qwen3_5", "qwen3_5_text"}),
            prefix="mtp.layers.0",
            modules=_QWEN,
            zeroes_first=False,
            norm_adds_one=True,
            count_key="mtp_num_hidden_layers",
        ),
        MtpFamily(
            "qwen3_5_moe",
            model_types=frozenset({"qwen3_5_moe", "qwen3_5_moe_text"}),
            prefix="mtp.layers.0",
            modules=_QWEN,
            zeroes_first=False,
            norm_adds_one=True,
            count_key="mtp_num_hidden_layers",
        ),
        MtpFamily(
            "deepseek_v3",
            model_types=frozenset({"deepseek_v3"}),
            prefix="model.layers.{n}",
            modules=_NEXTN,
        ),
    )
}

_SHARED = ("embed_tokens.weight", "shared_head.head.weight")
"""Copies of the target's own that some checkpoints have beside the layer; no engine reads them."""


def family_of(config: Mapping[str, Any]) -> MtpFamily | None:
    """The family of the target that a config.json describes; None where it has none."""
    named = config.get("architectures")
    first = str(named[0]) if isinstance(named, list) and named else ""
    for family in FAMILIES.values():
        if first in family.architectures or config.get("model_type") in family.model_types:
            return family
    return None


def text_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the language model, where a config.json nests them."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def num_mtp_layers(family: MtpFamily, config: Mapping[str, Any]) -> int:
    """By the target's config; 0 where it does not say."""
    count = text_settings(config).get(family.count_key, config.get(family.count_key))
    return count if isinstance(count, int) else 0


def our_name(family: MtpFamily, name: str, num_layers: int) -> str | None:
    """Ours of a tensor of a target's checkpoint; None for one that is not its first MTP layer's."""
    assert family.modules is not None
    for ours, theirs in family.modules.items():
        if name == f"{theirs.format(n=num_layers)}.weight":
            return f"{ours}.weight"
    prefix = f"{family.prefix.format(n=num_layers)}."
    if not name.startswith(prefix) or name.removeprefix(prefix) in _SHARED:
        return None
    return f"layer.{name.removeprefix(prefix)}"


def their_name(family: MtpFamily, name: str, num_layers: int) -> str:
    """The name in a target's checkpoint of one of our tensors."""
    assert family.modules is not None
    module = name.removesuffix(".weight")
    if module in family.modules:
        return f"{family.modules[module].format(n=num_layers)}.weight"
    return f"{family.prefix.format(n=num_layers)}.{name.removeprefix('layer.')}"
