"""Contradictions in an EAGLE-3 artifact's config, or between it and its target."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.base import LAYER_TYPES
from specpipe.schemas.drafters.eagle3 import SWITCHES, Eagle3Shape
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.parts.artifact.layer_config import LAYER_IDS, layer_config
from specpipe.stages.drafters.parts.artifact.layer_structure import (
    declared_layers,
    layer_structure_problems,
)


def declared_shape(config: Mapping[str, Any]) -> Eagle3Shape:
    """Raises ValueError or TypeError where a value has no sense."""
    layer = layer_config(config)
    size = config["draft_vocab_size"]
    return Eagle3Shape(
        target_hidden_size=config["target_hidden_size"],
        aux_layers=tuple(config[LAYER_IDS]),
        vocab_size=layer["vocab_size"],
        draft_vocab_size=layer["vocab_size"] if size is None else size,
        **{key: config[key] for key in SWITCHES},
        **declared_layers(layer),
    )


def config_problems(
    config: Mapping[str, Any], shape: Eagle3Shape, target: TargetFacts
) -> list[str]:
    """The config against itself and against the target's."""
    layer = layer_config(config)
    problems = layer_structure_problems(config, shape, target)
    if layer["num_aux_hidden_states"] != shape.num_aux:
        problems.append(
            f"num_aux_hidden_states is {layer['num_aux_hidden_states']!r}, but must be"
            f" {shape.num_aux!r}"
        )
    if shape.layer_type not in LAYER_TYPES:
        problems.append(
            f"model_type {shape.layer_type!r} is none of {', '.join(LAYER_TYPES)}: vLLM has no"
            " such EAGLE-3 layer"
        )
    if shape.norm_before_fc and shape.fc_norm:
        problems.append("norm_before_fc and fc_norm exclude each other")
    return problems
