"""Flat configs of drafters of blocks: the layers' settings at the top, as their authors write."""

from typing import Any

from specpipe.schemas.drafters.block import BlockShape
from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.parts.artifact.own_key import OWN, own_settings
from specpipe.stages.drafters.parts.artifact.speculators_config import REQUIRED_LAYER_KEYS

FLAT_KEYS = REQUIRED_LAYER_KEYS | {
    "architectures",
    "block_size",
    "draft_vocab_size",
    "target_hidden_size",
    "torch_dtype",
    OWN,
}


def flat_settings(drafter: Drafter[Any]) -> dict[str, Any]:
    """Settings of the drafter as a whole, and what no engine reads."""
    shape = drafter.shape
    assert isinstance(shape, BlockShape)
    return {
        "block_size": shape.block_size,
        "draft_vocab_size": shape.draft_vocab_size,
        "target_hidden_size": shape.target_hidden_size,
        "torch_dtype": drafter.dtype,
        **own_settings(drafter, own_lm_head=shape.own_lm_head),
    }
