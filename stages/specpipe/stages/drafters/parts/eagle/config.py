"""Configs of artifacts whose layers are EAGLE-3's, in formats of ours.

An architecture says which of the norms it has (`switches`), and its name in prose.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specpipe.schemas.drafters.base import LAYER_TYPES, LayerShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact import OfTarget
from specpipe.stages.drafters.artifact_format import Drafter, TargetFacts
from specpipe.stages.drafters.parts.artifact.layer_config import LAYER_IDS, layer_config
from specpipe.stages.drafters.parts.artifact.layer_structure import (
    declared_layers,
    layer_structure_problems,
)


def drafter_settings(drafter: Drafter[Any], switches: Sequence[str]) -> dict[str, Any]:
    """Settings of the drafter as a whole, which every format has at the top.

    Nested layer ids are read by one of vLLM's two model runners and ignored by the other.
    """
    shape = drafter.shape
    return {
        "draft_vocab_size": shape.draft_vocab_size,
        "target_hidden_size": shape.target_hidden_size,
        **{switch: getattr(shape, switch) for switch in switches},
        LAYER_IDS: list(shape.aux_layers),
        "tie_word_embeddings": False,
        "torch_dtype": drafter.dtype,
    }


def declared_values(config: Mapping[str, Any], switches: Sequence[str]) -> dict[str, Any]:
    """Fields of the shape; raises ValueError, TypeError or KeyError where one has no sense."""
    layer = layer_config(config)
    size = config["draft_vocab_size"]
    return {
        "target_hidden_size": config["target_hidden_size"],
        "aux_layers": tuple(config[LAYER_IDS]),
        "vocab_size": layer["vocab_size"],
        "draft_vocab_size": layer["vocab_size"] if size is None else size,
        **{key: config[key] for key in switches},
        **declared_layers(layer),
    }


def config_problems(
    config: Mapping[str, Any], shape: LayerShape, target: TargetFacts, title: str
) -> list[str]:
    """The config against itself and against the target's."""
    layer = layer_config(config)
    problems = layer_structure_problems(config, shape, target)
    if layer["num_aux_hidden_states"] != shape.num_aux:
        # vLLM's llama layer reads this one, and 3 without it; its qwen3 layer reads the ids.
        problems.append(
            f"num_aux_hidden_states is {layer['num_aux_hidden_states']!r}, but must be"
            f" {shape.num_aux!r}"
        )
    if shape.layer_type not in LAYER_TYPES:
        problems.append(
            f"model_type {shape.layer_type!r} is none of {', '.join(LAYER_TYPES)}: vLLM has no"
            f" such {title} layer"
        )
    return problems


def known_layers(
    folder: Path, ids: tuple[int, ...] | None, target: OfTarget | None
) -> tuple[int, ...]:
    """The layer ids that a config names, else the target's default ones; ConfigError without."""
    known = ids or (target.aux_layers if target else None)
    if known is None:
        raise ConfigError(
            f"artifact {folder}: {CONFIG_FILE} names no {LAYER_IDS}, and their default depends on"
            " the target; give --target"
        )
    return known
