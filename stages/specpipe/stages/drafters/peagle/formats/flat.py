"""The `peagle` format: EAGLE-3's flat config with the mask token as `ptd_token_id`, as the drafters
of the paper's authors are published; vLLM alone reads it."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.peagle import PeagleShape
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    TargetFacts,
    layer_settings,
    mismatches,
    missing_and_unknown,
)
from specpipe.stages.drafters.parts.artifact.own_key import OwnKeyFormat, own_settings
from specpipe.stages.drafters.parts.artifact.speculators_config import is_speculators
from specpipe.stages.drafters.parts.eagle.config import drafter_settings
from specpipe.stages.drafters.parts.rope import rope_scaling
from specpipe.stages.drafters.peagle.layout import FLAT_KEYS, SWITCHES

ARCHITECTURES = {"llama": "LlamaForCausalLMEagle3", "qwen3": "Eagle3Qwen3ForCausalLM"}
"""The class of vLLM that loads it, by the kind of its layers."""


class FlatFormat(OwnKeyFormat[PeagleShape]):
    name = "peagle"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return not is_speculators(config)

    def inexpressible(self, shape: PeagleShape) -> list[str]:
        window = shape.sliding_window
        return [] if window is None else [f"a sliding window of {window} (no engine reads it here)"]

    def config(self, drafter: Drafter[PeagleShape]) -> dict[str, Any]:
        shape, rope = drafter.shape, drafter.shape.rope_parameters
        return {
            "architectures": [ARCHITECTURES[shape.layer_type]],
            **layer_settings(shape),
            "rope_theta": rope["rope_theta"],
            "rope_scaling": rope_scaling(rope),
            **drafter_settings(drafter, SWITCHES),
            "ptd_token_id": shape.mask_token,
            **own_settings(drafter),
        }

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        return missing_and_unknown(CONFIG_FILE, config, FLAT_KEYS, FLAT_KEYS)

    def problems(
        self,
        config: Mapping[str, Any],
        shape: PeagleShape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        expected = [
            ("architectures", config["architectures"], [ARCHITECTURES.get(shape.layer_type)]),
            ("rope_theta", config["rope_theta"], shape.rope_parameters.get("rope_theta")),
            ("rope_scaling", config["rope_scaling"], rope_scaling(shape.rope_parameters)),
        ]
        problems = mismatches(expected)
        problems += [f"the format cannot hold {what}" for what in self.inexpressible(shape)]
        return problems + self.target_problems(config, target)
