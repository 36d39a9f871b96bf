"""The format of DFlash's authors: a flat config of Qwen3, with `dflash_config`."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.dflash import DFlashShape
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    TargetFacts,
    missing_and_unknown,
)
from specpipe.stages.drafters.parts.artifact.own_key import OWN, OwnKeyFormat
from specpipe.stages.drafters.parts.artifact.speculators_config import is_speculators
from specpipe.stages.drafters.parts.block.config import (
    DFLASH_CONFIG,
    TARGET_LAYER_IDS,
    block_layer_settings,
)
from specpipe.stages.drafters.parts.block.flat import FLAT_KEYS, flat_settings

ARCHITECTURE_NAME = "DFlashDraftModel"
_NESTED = frozenset({"mask_token_id", TARGET_LAYER_IDS, "causal"})


class ZLab(OwnKeyFormat[DFlashShape]):
    name = "z-lab"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return not is_speculators(config)

    def config(self, drafter: Drafter[DFlashShape]) -> dict[str, Any]:
        shape = drafter.shape
        return {
            "architectures": [ARCHITECTURE_NAME],
            **block_layer_settings(shape),
            **flat_settings(drafter),
            DFLASH_CONFIG: {
                "mask_token_id": shape.mask_token,
                TARGET_LAYER_IDS: [layer - 1 for layer in shape.aux_layers],
                "causal": shape.causal,
            },
        }

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        nested, own = config.get(DFLASH_CONFIG, {}), config.get(OWN, {})
        if not isinstance(nested, dict) or not isinstance(own, dict):
            return [f"{CONFIG_FILE}: {DFLASH_CONFIG} or {OWN} is not an object"]
        required = FLAT_KEYS | {DFLASH_CONFIG}
        allowed = required | {"layer_types", "sliding_window"}
        return [
            *missing_and_unknown(CONFIG_FILE, config, required, allowed),
            *missing_and_unknown(DFLASH_CONFIG, nested, _NESTED, _NESTED),
            *missing_and_unknown(OWN, own, frozenset({"own_lm_head"}), frozenset(own)),
        ]

    def problems(
        self,
        config: Mapping[str, Any],
        shape: DFlashShape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        problems = []
        if config["architectures"] != [ARCHITECTURE_NAME]:
            problems.append(
                f"architectures is {config['architectures']!r}, but must be [{ARCHITECTURE_NAME!r}]"
            )
        return problems + self.target_problems(config, target)
