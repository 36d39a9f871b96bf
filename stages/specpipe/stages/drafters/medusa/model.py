"""The Medusa drafter: head k reads the target's final state at a start, and nothing else.

Parameter names are those of the artifact. A shared lm_head is the target's, frozen, and no
parameter.

Legend: K heads, N starts, H hidden size, V vocabulary.
"""

import torch
from torch import Tensor, nn

from specpipe.schemas.drafters.medusa import MedusaShape
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.drafters.contract import DrafterModel
from specpipe.stages.drafters.parts.final_norm import FinalNorm
from specpipe.stages.samples.batch import Batch
from specpipe.stages.target.head.target_tensors import TargetTensors


class Block(nn.Module):
    """The residual blocks of one head."""

    def __init__(self, shape: MedusaShape) -> None:
        super().__init__()
        H = shape.target_hidden_size
        self.layers = nn.ModuleList(
            nn.Linear(H, H, bias=shape.block_bias) for _ in range(shape.num_layers)
        )

    def forward(self, hidden_NH: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_NH = hidden_NH + nn.functional.silu(layer(hidden_NH))
        return hidden_NH


class Medusa(DrafterModel):
    shape: MedusaShape
    lm_head_VH: Tensor

    def __init__(self, shape: MedusaShape, target: TargetTensors) -> None:
        super().__init__()
        self.shape = shape
        self.final_norm = FinalNorm(target.final_norm)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_heads))
        if not shape.own_lm_head:
            self.register_buffer("lm_head_VH", target.lm_head_VH, persistent=False)
        else:
            H, V = shape.target_hidden_size, shape.vocab_size
            self.lm_heads = nn.ModuleList(
                nn.Linear(H, V, bias=False) for _ in range(shape.num_heads)
            )

    def heads(self) -> Heads:
        if self.shape.own_lm_head:
            return Heads.per_head(list(self.lm_heads.parameters()))
        return Heads.shared(self.lm_head_VH)

    def forward(self, batch: Batch) -> Tensor:
        final_NH = self.final_norm(batch.aux_TLH[batch.starts_N, -1])
        state_NH = final_NH.to(next(self.parameters()).dtype)
        return torch.stack([block(state_NH) for block in list(self.blocks)[: batch.num_heads]])


@torch.no_grad()
def initialise(model: Medusa, target: TargetTensors) -> None:
    """Blocks that add nothing, and heads that are copies of the target's: every draft is what the
    target says next."""
    for parameter in model.blocks.parameters():
        nn.init.zeros_(parameter)
    if model.shape.own_lm_head:
        for weight_VH in model.lm_heads.parameters():
            weight_VH.copy_(target.lm_head_VH.float())
