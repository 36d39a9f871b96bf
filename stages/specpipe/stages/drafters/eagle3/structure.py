"""Contradictions in an EAGLE-3 artifact's config, or between it and its target."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.eagle3 import SWITCHES, Eagle3Shape
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.parts.eagle import config as eagle_config


def declared_shape(config: Mapping[str, Any]) -> Eagle3Shape:
    """Raises ValueError, TypeError or KeyError where a value has no sense."""
    return Eagle3Shape(**eagle_config.declared_values(config, SWITCHES))


def config_problems(
    config: Mapping[str, Any], shape: Eagle3Shape, target: TargetFacts
) -> list[str]:
    """The config against itself and against the target's."""
    problems = eagle_config.config_problems(config, shape, target, "EAGLE-3")
    if shape.norm_before_fc and shape.fc_norm:
        problems.append("norm_before_fc and fc_norm exclude each other")
    return problems
