"""What of a P-EAGLE artifact's config contradicts itself, or its target."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.peagle import PeagleShape
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.parts.eagle import config as eagle_config
from specpipe.stages.drafters.peagle.artifact import mask_token, shape_problems
from specpipe.stages.drafters.peagle.layout import SWITCHES


def declared_shape(config: Mapping[str, Any]) -> PeagleShape:
    """Raises ValueError, TypeError or KeyError where a value has no sense."""
    values = eagle_config.declared_values(config, SWITCHES)
    return PeagleShape(**values, mask_token=mask_token(config))


def config_problems(
    config: Mapping[str, Any], shape: PeagleShape, target: TargetFacts
) -> list[str]:
    """The config against itself and against the target's."""
    problems = eagle_config.config_problems(config, shape, target, "P-EAGLE")
    problems += shape_problems(shape)
    problems += [
        f"{name} is on: vLLM passes over it in a drafter peagle"
        for name in ("fc_norm", "norm_output")
        if config.get(name)
    ]
    return problems
