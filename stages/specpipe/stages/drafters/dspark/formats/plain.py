"""The format of DSpark's authors: a flat config of Qwen3, which vLLM reads from 0.25 on."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.dspark import DSparkShape
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    TargetFacts,
    missing_and_unknown,
)
from specpipe.stages.drafters.dspark.config import HEAD_KEYS, head_problems, head_settings
from specpipe.stages.drafters.parts.artifact.own_key import OWN, OwnKeyFormat
from specpipe.stages.drafters.parts.artifact.speculators_config import is_speculators
from specpipe.stages.drafters.parts.block.config import (
    DFLASH_CONFIG,
    TARGET_LAYER_IDS,
    block_layer_settings,
)
from specpipe.stages.drafters.parts.block.flat import FLAT_KEYS, flat_settings

ARCHITECTURE_NAME = "Qwen3DSparkModel"
"""vLLM makes DeepSeek-V4's drafter of every other one in this format."""
BONUS_ANCHOR = "dspark_bonus_anchor"
_NESTED = frozenset({"causal"})
_KEYS = FLAT_KEYS | HEAD_KEYS | {DFLASH_CONFIG, TARGET_LAYER_IDS, "mask_token_id", BONUS_ANCHOR}


class Plain(OwnKeyFormat[DSparkShape]):
    name = "dspark"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return not is_speculators(config)

    def config(self, drafter: Drafter[DSparkShape]) -> dict[str, Any]:
        shape = drafter.shape
        return {
            "architectures": [ARCHITECTURE_NAME],
            **block_layer_settings(shape),
            **flat_settings(drafter),
            **head_settings(shape),
            BONUS_ANCHOR: False,
            "mask_token_id": shape.mask_token,
            TARGET_LAYER_IDS: [layer - 1 for layer in shape.aux_layers],
            DFLASH_CONFIG: {"causal": shape.causal},
        }

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        nested, own = config.get(DFLASH_CONFIG, {}), config.get(OWN, {})
        if not isinstance(nested, dict) or not isinstance(own, dict):
            return [f"{CONFIG_FILE}: {DFLASH_CONFIG} or {OWN} is not an object"]
        return [
            *missing_and_unknown(
                CONFIG_FILE, config, _KEYS, _KEYS | {"layer_types", "sliding_window"}
            ),
            *missing_and_unknown(DFLASH_CONFIG, nested, _NESTED, _NESTED),
            *missing_and_unknown(OWN, own, frozenset({"own_lm_head"}), frozenset(own)),
        ]

    def problems(
        self,
        config: Mapping[str, Any],
        shape: DSparkShape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        problems = head_problems(config, shape, target)
        expected = {"architectures": [ARCHITECTURE_NAME], BONUS_ANCHOR: False}
        problems += [
            f"{key} is {config[key]!r}, but must be {value!r}"
            for key, value in expected.items()
            if config[key] != value
        ]
        return problems + self.target_problems(config, target)
