"""What of a P-EAGLE artifact's config contradicts itself, or its target."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.base import LAYER_TYPES
from specpipe.schemas.drafters.peagle import PeagleShape
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.parts.artifact.layer_config import LAYER_IDS, layer_config
from specpipe.stages.drafters.parts.artifact.layer_structure import (
    declared_layers,
    layer_structure_problems,
)
from specpipe.stages.drafters.peagle.artifact import mask_token, shape_problems
from specpipe.stages.drafters.peagle.layout import SWITCHES


def declared_shape(config: Mapping[str, Any]) -> PeagleShape:
    """Raises ValueError, TypeError or KeyError where a value has no sense."""
    layer = layer_config(config)
    size = config["draft_vocab_size"]
    return PeagleShape(
        target_hidden_size=config["target_hidden_size"],
        aux_layers=tuple(config[LAYER_IDS]),
        vocab_size=layer["vocab_size"],
        draft_vocab_size=layer["vocab_size"] if size is None else size,
        mask_token=mask_token(config),
        **{key: config[key] for key in SWITCHES},
        **declared_layers(layer),
    )


def config_problems(
    config: Mapping[str, Any], shape: PeagleShape, target: TargetFacts
) -> list[str]:
    """The config against itself and against the target's."""
    layer = layer_config(config)
    problems = layer_structure_problems(config, shape, target) + shape_problems(shape)
    if layer["num_aux_hidden_states"] != shape.num_aux:
        # vLLM's llama layer reads this one, and 3 without it; its qwen3 layer reads the ids.
        problems.append(
            f"num_aux_hidden_states is {layer['num_aux_hidden_states']!r}, but must be"
            f" {shape.num_aux!r}"
        )
    if shape.layer_type not in LAYER_TYPES:
        problems.append(
            f"model_type {shape.layer_type!r} is none of {', '.join(LAYER_TYPES)}: vLLM has no"
            " such P-EAGLE layer"
        )
    problems += [
        f"{name} is on: vLLM passes over it in a drafter peagle"
        for name in ("fc_norm", "norm_output")
        if config.get(name)
    ]
    return problems
