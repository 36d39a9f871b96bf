"""Flat configs of drafters of blocks: the layers' settings at the top, as their authors write."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.block import BlockShape
from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.parts.artifact.speculators_config import REQUIRED_LAYER_KEYS
from specpipe.stages.drafters.parts.block.config import OWN

FLAT_KEYS = REQUIRED_LAYER_KEYS | {
    "architectures",
    "block_size",
    "draft_vocab_size",
    "target_hidden_size",
    "torch_dtype",
    OWN,
}


def own_settings(drafter: Drafter[Any]) -> dict[str, Any]:
    """Settings of the drafter as a whole, and what no engine reads."""
    shape = drafter.shape
    assert isinstance(shape, BlockShape)
    return {
        "block_size": shape.block_size,
        "draft_vocab_size": shape.draft_vocab_size,
        "target_hidden_size": shape.target_hidden_size,
        "torch_dtype": drafter.dtype,
        OWN: {
            "target": drafter.target,
            "target_architecture": drafter.target_architecture,
            "speculative_tokens": drafter.speculative_tokens,
            "own_lm_head": shape.own_lm_head,
        },
    }


def stated(config: Mapping[str, Any]) -> tuple[str, str, int] | None:
    """Name and architecture of the target, and number of draft tokens; None where not said."""
    try:
        own = config[OWN]
        return own["target"], own["target_architecture"], own["speculative_tokens"]
    except (KeyError, TypeError):
        return None
