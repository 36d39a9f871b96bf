"""The first weights of a drafter of blocks.

Legend: D draft vocabulary, H hidden size.
"""

import torch
from torch import Tensor

from specpipe.stages.drafters.parts.block.model import BlockDrafter
from specpipe.stages.target.head.target_tensors import StoredTarget


@torch.no_grad()
def initialise(model: BlockDrafter, target: StoredTarget, target_ids_D: Tensor) -> None:
    """The norm before the head has the scale that the target's head expects of states; an own head
    begins as the target's rows."""
    model.norm.weight.copy_(target.final_scale_H)
    if model.shape.own_lm_head:
        model.lm_head.weight.copy_(target.lm_head_VH[target_ids_D].float())
