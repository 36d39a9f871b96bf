"""The `speculators` format of a P-EAGLE drafter, which vLLM loads directly."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.peagle import PeagleShape
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    Format,
    TargetFacts,
    layer_settings,
    missing_and_unknown,
)
from specpipe.stages.drafters.parts.artifact.speculators_config import (
    ALLOWED_LAYER_KEYS,
    REQUIRED_LAYER_KEYS,
    is_speculators,
    speculators_problems,
    speculators_settings,
    stated,
    window_settings,
)
from specpipe.stages.drafters.peagle.layout import (
    ALLOWED_SPECULATORS_KEYS,
    SPECULATORS_KEYS,
    drafter_settings,
)


class Speculators(Format[PeagleShape]):
    name = "speculators"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return is_speculators(config)

    def config(self, drafter: Drafter[PeagleShape]) -> dict[str, Any]:
        shape = drafter.shape
        return {
            "architectures": ["PEagleSpeculator"],
            **speculators_settings(shape.architecture, drafter),
            "transformer_layer_config": layer_settings(shape) | window_settings(shape),
            **drafter_settings(drafter),
            "mask_token_id": shape.mask_token,
        }

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        layer = config.get("transformer_layer_config", {})
        if not isinstance(layer, dict):
            return [f"{CONFIG_FILE}: transformer_layer_config is not an object"]
        return [
            *missing_and_unknown(CONFIG_FILE, config, SPECULATORS_KEYS, ALLOWED_SPECULATORS_KEYS),
            *missing_and_unknown(
                "transformer_layer_config", layer, REQUIRED_LAYER_KEYS, ALLOWED_LAYER_KEYS
            ),
        ]

    def problems(
        self,
        config: Mapping[str, Any],
        shape: PeagleShape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        layer, problems = config["transformer_layer_config"], []
        windows = window_settings(shape).get("layer_types")
        if layer.get("layer_types") != windows:
            problems.append(
                f"layer_types {layer.get('layer_types')!r} must be {windows!r} for a sliding_window"
                f" of {shape.sliding_window!r}"
            )
        return problems + speculators_problems(config, shape.architecture, target)

    def drafter(self, config: Mapping[str, Any]) -> tuple[str, str, int] | None:
        return stated(config)
