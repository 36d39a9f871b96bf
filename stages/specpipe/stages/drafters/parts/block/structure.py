"""The shape that a config in one of our formats declares, and what contradicts itself in it."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.block import BlockShape
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.parts.artifact.layer_config import layer_config
from specpipe.stages.drafters.parts.artifact.layer_structure import (
    declared_layers,
    layer_structure_problems,
)
from specpipe.stages.drafters.parts.artifact.own_key import OWN
from specpipe.stages.drafters.parts.block.config import (
    kind_problems,
    layer_ids,
    mask_token_of,
    nested,
    said_causal,
)


def declared_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a BlockShape; raises ValueError, TypeError or KeyError where one has no sense."""
    layer = layer_config(config)
    size = config["draft_vocab_size"]
    return {
        "target_hidden_size": config["target_hidden_size"],
        "aux_layers": layer_ids(config) or (),
        "vocab_size": layer["vocab_size"],
        "draft_vocab_size": layer["vocab_size"] if size is None else size,
        **declared_layers(layer),
        "causal": said_causal(nested(config)["causal"]),
        "block_size": config["block_size"],
        "mask_token": mask_token_of(config),
        "own_lm_head": config[OWN]["own_lm_head"],
    }


def block_problems(config: Mapping[str, Any], shape: BlockShape, target: TargetFacts) -> list[str]:
    """The config against itself and against the target's."""
    return layer_structure_problems(config, shape, target) + kind_problems(config, shape)
