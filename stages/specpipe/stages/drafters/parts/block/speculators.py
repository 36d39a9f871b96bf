"""The `speculators` format of drafters of blocks."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.block import BlockShape
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact_format import Drafter, missing_and_unknown
from specpipe.stages.drafters.parts.artifact.own_key import OWN
from specpipe.stages.drafters.parts.artifact.speculators_config import (
    ALLOWED_LAYER_KEYS,
    REQUIRED_LAYER_KEYS,
    speculators_settings,
)
from specpipe.stages.drafters.parts.block.config import (
    DFLASH_CONFIG,
    SPECULATORS_LAYER_IDS,
    block_layer_settings,
)

_CAUSAL = frozenset({"causal"})
_OWN = frozenset({"own_lm_head"})


def block_keys() -> frozenset[str]:
    """Keys at the top of every config in this format, all of them required."""
    return frozenset(
        {
            "architectures",
            "speculators_model_type",
            "speculators_version",
            "speculators_config",
            "transformer_layer_config",
            "draft_vocab_size",
            "target_hidden_size",
            "block_size",
            "mask_token_id",
            "tie_word_embeddings",
            "torch_dtype",
            SPECULATORS_LAYER_IDS,
            OWN,
        }
    )


def block_settings(kind: str, drafter: Drafter[Any]) -> dict[str, Any]:
    """Their values; `kind` is speculators' name of the architecture."""
    shape = drafter.shape
    assert isinstance(shape, BlockShape)
    return {
        **speculators_settings(kind, drafter),
        "transformer_layer_config": {
            **block_layer_settings(shape),
            DFLASH_CONFIG: {"causal": shape.causal},
        },
        "draft_vocab_size": shape.draft_vocab_size,
        "target_hidden_size": shape.target_hidden_size,
        "block_size": shape.block_size,
        "mask_token_id": shape.mask_token,
        SPECULATORS_LAYER_IDS: list(shape.aux_layers),
        OWN: {"own_lm_head": shape.own_lm_head},
        "tie_word_embeddings": False,
        "torch_dtype": drafter.dtype,
    }


def key_problems(config: Mapping[str, Any], keys: frozenset[str]) -> list[str]:
    """Keys that are missing or unknown at the top, among the layers' and below them."""
    layer, own = config.get("transformer_layer_config", {}), config.get(OWN, {})
    nested: Any = layer.get(DFLASH_CONFIG, {}) if isinstance(layer, dict) else None
    if not all(isinstance(part, dict) for part in (layer, own, nested)):
        return [f"{CONFIG_FILE}: transformer_layer_config, its {DFLASH_CONFIG} or {OWN} is wrong"]
    where = "transformer_layer_config"
    required, allowed = (
        keys_of_layer | {DFLASH_CONFIG}
        for keys_of_layer in (REQUIRED_LAYER_KEYS, ALLOWED_LAYER_KEYS)
    )
    return [
        *missing_and_unknown(CONFIG_FILE, config, keys, keys),
        *missing_and_unknown(where, layer, required, allowed),
        *missing_and_unknown(f"{where}'s {DFLASH_CONFIG}", nested, _CAUSAL, _CAUSAL),
        *missing_and_unknown(OWN, own, _OWN, _OWN),
    ]
