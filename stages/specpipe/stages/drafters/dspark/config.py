"""Keys of DSpark's configs, which every format has at the top.

vLLM from 0.27.1 reads `sample_from_anchor`, older ones `dspark_bonus_anchor`; those from 0.25 to
0.26 take every artifact in the `speculators` format for one whose anchor drafts nothing.
"""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.dspark import DSparkShape
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.parts.block.config import FROM_ANCHOR

HEAD_TYPE = "vanilla"
HEAD_KEYS = frozenset(
    {
        "markov_rank",
        "markov_head_type",
        "enable_confidence_head",
        "confidence_head_with_markov",
        FROM_ANCHOR,
    }
)


def head_settings(shape: DSparkShape) -> dict[str, Any]:
    return {
        "markov_rank": shape.markov_rank,
        "markov_head_type": HEAD_TYPE,
        "enable_confidence_head": shape.confidence,
        "confidence_head_with_markov": True,
        FROM_ANCHOR: True,
    }


def declared_heads(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the shape that these keys declare."""
    return {"markov_rank": config["markov_rank"], "confidence": config["enable_confidence_head"]}


def head_problems(config: Mapping[str, Any], shape: DSparkShape, target: TargetFacts) -> list[str]:
    problems = [
        f"{key} is {config[key]!r}, but must be {value!r}"
        for key, value in head_settings(shape).items()
        if config[key] != value
    ]
    if shape.markov_rank < 1:
        problems.append("markov_rank must be positive: vLLM builds the head whatever it is")
    longest = target.max_position_embeddings
    if longest is not None and shape.max_position_embeddings < longest:
        problems.append(
            f"max_position_embeddings is {shape.max_position_embeddings}, but the target's is"
            f" {longest}: vLLM drafts no further than that"
        )
    return problems
