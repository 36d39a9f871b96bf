"""Contradictions in an artifact's config in our formats, or between it and its target."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.base import LayerShape
from specpipe.stages.drafters.artifact_format import TargetFacts, mismatches
from specpipe.stages.drafters.parts.artifact.layer_config import LAYER_IDS, layer_config
from specpipe.stages.drafters.parts.layer_shape import layer_problems
from specpipe.stages.drafters.parts.rope import FIXED_LENGTH, rope_problems

_LAYER_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "hidden_act",
    "rope_parameters",
    "max_position_embeddings",
)


def declared_layers(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a LayerShape that the layers' settings declare."""
    return {
        "layer_type": layer["model_type"],
        "num_layers": layer["num_hidden_layers"],
        "sliding_window": layer.get("sliding_window"),
        **{key: layer[key] for key in _LAYER_KEYS},
    }


def layer_structure_problems(
    config: Mapping[str, Any], shape: LayerShape, target: TargetFacts
) -> list[str]:
    """Layer ids, sizes, rope and vocabulary against each other and against the target's."""
    problems = []
    layer = layer_config(config)
    ids = list(shape.aux_layers)
    outside = [k for k in ids if not 1 <= k <= target.num_layers]
    if not ids or outside or ids != sorted(set(ids)):
        problems.append(
            f"{LAYER_IDS} {ids} must ascend within 1..{target.num_layers}"
            " (id k is the residual stream that enters decoder layer k)"
        )
    expected: list[tuple[str, Any, Any]] = [
        ("target_hidden_size", shape.target_hidden_size, target.hidden_size),
        ("vocab_size", shape.vocab_size, target.vocab_size),
        ("attention_bias", layer["attention_bias"], False),
        ("mlp_bias", layer.get("mlp_bias", False), False),
        ("tie_word_embeddings", config["tie_word_embeddings"], False),
    ]
    problems += mismatches(expected)
    if not 0 < shape.draft_vocab_size <= shape.vocab_size:
        problems.append(
            f"draft_vocab_size {shape.draft_vocab_size} is not in 1..{shape.vocab_size}"
        )
    problems += layer_problems(shape) + rope_problems(shape.rope_parameters)
    return problems + too_short(shape, target)


def too_short(shape: LayerShape, target: TargetFacts) -> list[str]:
    """A drafter that would shorten the texts that the server takes."""
    rope_type = shape.rope_parameters.get("rope_type")
    own, longest = shape.max_position_embeddings, target.max_position_embeddings
    if rope_type not in FIXED_LENGTH or longest is None or own >= longest:
        return []
    return [
        f"max_position_embeddings is {own}, but the target's is {longest}: with rope type"
        f" {rope_type!r} vLLM lowers the server's longest text to the drafter's"
    ]
