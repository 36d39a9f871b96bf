"""Keys of the configs of drafters of blocks, whatever program wrote them.

Whether blocks are causal is what vLLM asks `dflash_config` among the layers' settings for; ours say
it there always. speculators has `sliding_window_non_causal` at the top instead, which vLLM takes
for all layers, and speculators for those with a window alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specpipe.schemas.drafters.block import BlockShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact_format import layer_settings
from specpipe.stages.drafters.parts.artifact.layer_config import LAYER_IDS, layer_config
from specpipe.stages.drafters.parts.artifact.speculators_config import (
    is_speculators,
    window_settings,
)

DFLASH_CONFIG = "dflash_config"
TARGET_LAYER_IDS = "target_layer_ids"
"""Of DFlash's and DSpark's authors: a layer's output is named by the layer, one less than ours."""
SPECULATORS_LAYER_IDS = "aux_hidden_state_layer_ids"
NON_CAUSAL = "sliding_window_non_causal"
FROM_ANCHOR = "sample_from_anchor"


def nested(config: Mapping[str, Any]) -> Mapping[str, Any]:
    own: Mapping[str, Any] = layer_config(config).get(DFLASH_CONFIG) or {}
    return own


def layer_ids(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The auxiliary layers that it names, as we count; None where it names none."""
    for key in (SPECULATORS_LAYER_IDS, LAYER_IDS):
        if config.get(key):
            return tuple(config[key])
    theirs = nested(config).get(TARGET_LAYER_IDS) or config.get(TARGET_LAYER_IDS)
    return tuple(layer + 1 for layer in theirs) if theirs else None


def mask_token_of(config: Mapping[str, Any]) -> int:
    """KeyError where it is missing."""
    if "mask_token_id" in config:
        return int(config["mask_token_id"])
    return int(nested(config)["mask_token_id"])


def served_window(config: Mapping[str, Any]) -> int | None:
    """The window of the layers as vLLM finds it."""
    layer, own = layer_config(config), nested(config)
    kinds = set(layer.get("layer_types") or ())
    if "sliding_attention" not in kinds and not own.get("use_swa"):
        return None
    window: int | None = own.get("swa_window_size", layer.get("sliding_window"))
    return window


def usual_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope that vLLM gives layers whose config has none."""
    layer = layer_config(config)
    if layer.get("rope_parameters") or layer.get("rope_theta"):
        return {}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}


def said_causal(value: object) -> bool:
    """The value of `causal`; raises ConfigError where it is neither true nor false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{CONFIG_FILE}: causal is {value!r}, but must be true or false")
    return value


def trained_causal(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether blocks were causal in training; raises ConfigError where that cannot be told."""
    said = nested(config).get("causal")
    if said is not None:
        return said_causal(said)
    kinds = set(layer_config(config).get("layer_types") or ["full_attention"])
    if len(kinds) > 1:
        raise ConfigError(
            f"artifact {folder}: {CONFIG_FILE}: layers of both full and sliding attention are of"
            " two kinds, which no drafter here has, and which vLLM on a CPU refuses"
        )
    if kinds == {"full_attention"}:
        return False
    if not is_speculators(config):
        return True
    if NON_CAUSAL not in config:
        raise ConfigError(
            f"artifact {folder}: {CONFIG_FILE} does not say {NON_CAUSAL}; vLLM takes it for true,"
            " speculators for false: write down what was trained"
        )
    return not config[NON_CAUSAL]


def block_layer_settings(shape: BlockShape) -> dict[str, Any]:
    """Settings of the layers, as every format has them."""
    return layer_settings(shape) | window_settings(shape)


def kind_problems(config: Mapping[str, Any], shape: BlockShape) -> list[str]:
    """Keys of the layers that are not this drafter's."""
    layer = layer_config(config)
    problems = []
    if layer["model_type"] != "qwen3":
        problems.append(f"model_type is {layer['model_type']!r}, but must be 'qwen3'")
    windows = window_settings(shape)
    for key in ("layer_types", "sliding_window"):
        if layer.get(key) != windows.get(key):
            problems.append(
                f"{key} is {layer.get(key)!r}, but must be {windows.get(key)!r}: all layers have"
                " one kind of attention and one window, as they share one cache of keys"
            )
    if not 0 <= shape.mask_token < shape.vocab_size:
        problems.append(f"mask_token_id {shape.mask_token} is not in 0..{shape.vocab_size - 1}")
    if shape.block_size < 1:
        problems.append(f"block_size is {shape.block_size}, not positive")
    return problems
