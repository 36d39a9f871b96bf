"""DFlash written down plainly.

Legend: K draft tokens, R starts, H hidden size, D draft vocabulary.
"""

from torch import Tensor

from specpipe.stages.drafters.parts.block.proposal import PlainBlocks


class PlainDFlash(PlainBlocks):
    """Slot k drafts the token k beyond the last one."""

    __slots__ = ()

    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """Outputs [K, R, H] of every step at the starts [begin, end), end < T."""
        slots_RBH = self.slots(input_ids_T, aux_TLH, begin, end, num_steps + 1)
        return slots_RBH[:, 1:].transpose(0, 1)

    def logits(self, hidden_RX: Tensor, step: int) -> Tensor:
        """[R, D]; every step has the same head."""
        return self._linear("lm_head", self._norm("norm", hidden_RX))
