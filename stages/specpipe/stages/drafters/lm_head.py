"""Artifacts that leave the lm_head to the target.

Legend: V vocabulary, H hidden size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import LM_HEAD
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.target.head.target_tensors import TargetTensors


def without_lm_head(
    shape: DrafterShape, tensors: Mapping[str, Tensor], target: TargetTensors
) -> dict[str, Tensor]:
    """The tensors without the lm_head, which the engine then takes from the target.

    Raises ConfigError unless it is the target's, to the bit as it is stored.
    """
    if LM_HEAD not in tensors:
        return dict(tensors)
    if not drafter_kind(shape).may_share_lm_head(shape):
        rows, width = tensors[LM_HEAD].shape
        raise ConfigError(
            f"the lm_head cannot be left out: it has {rows} rows of {width}, the target's"
            f" {shape.vocab_size} of {shape.target_hidden_size}"
        )
    if not torch.equal(tensors[LM_HEAD], target.lm_head_VH.to(tensors[LM_HEAD].dtype)):
        raise ConfigError("the lm_head cannot be left out: it was trained, and is not the target's")
    return {name: tensor for name, tensor in tensors.items() if name != LM_HEAD}
