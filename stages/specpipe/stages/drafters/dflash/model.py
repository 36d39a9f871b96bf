"""DFlash in training.

Legend: K heads, N starts, H hidden size.
"""

from torch import Tensor

from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.drafters.parts.block.model import BlockDrafter
from specpipe.stages.samples.batch import Batch


class DFlash(BlockDrafter):
    """Slot k of a block drafts the token that it stands for; slot 0 drafts nothing."""

    def forward(self, batch: Batch) -> Tensor:
        """[K, N, H]"""
        slots_NBH = self.slots(batch, batch.num_heads + 1)
        return slots_NBH[:, 1:].transpose(0, 1).contiguous()

    def heads(self) -> Heads:
        return Heads.shared(self.head)
