"""The `speculators` format of drafters whose layers are EAGLE-3's."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from specpipe.schemas.drafters.base import LayerShape
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    TargetFacts,
    layer_settings,
    missing_and_unknown,
)
from specpipe.stages.drafters.parts.artifact.speculators_config import (
    ALLOWED_LAYER_KEYS,
    REQUIRED_LAYER_KEYS,
    speculators_problems,
    speculators_settings,
    window_settings,
)
from specpipe.stages.drafters.parts.artifact.speculators_format import SpeculatorsFormat
from specpipe.stages.drafters.parts.eagle.config import drafter_settings

Shape = TypeVar("Shape", bound=LayerShape)


class EagleSpeculators(SpeculatorsFormat[Shape]):
    """Subclasses say what is theirs."""

    architecture: str
    """Name of speculators' class."""
    switches: Sequence[str]
    required: frozenset[str]
    """Keys at the top."""
    allowed: frozenset[str]

    def further_settings(self, shape: Shape) -> dict[str, Any]:
        """At the top, beside those of every such drafter."""
        return {}

    def config(self, drafter: Drafter[Shape]) -> dict[str, Any]:
        shape = drafter.shape
        return {
            "architectures": [self.architecture],
            **speculators_settings(shape.architecture, drafter),
            "transformer_layer_config": layer_settings(shape) | window_settings(shape),
            **drafter_settings(drafter, self.switches),
            **self.further_settings(shape),
        }

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        layer = config.get("transformer_layer_config", {})
        if not isinstance(layer, dict):
            return [f"{CONFIG_FILE}: transformer_layer_config is not an object"]
        return [
            *missing_and_unknown(CONFIG_FILE, config, self.required, self.allowed),
            *missing_and_unknown(
                "transformer_layer_config", layer, REQUIRED_LAYER_KEYS, ALLOWED_LAYER_KEYS
            ),
        ]

    def problems(
        self,
        config: Mapping[str, Any],
        shape: Shape,
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
