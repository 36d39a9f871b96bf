"""DSpark written down plainly.

Slot k-1 of a block of K slots drafts token x[i+1+k]: its logits are W h + W2 W1[x[i+k]]. Along the
text, the draft before is the text's token: where it is another one, the round has ended.

Legend: K draft tokens, R starts, H hidden size, r rank, X = H + r, D draft vocabulary.
"""

import torch
from torch import Tensor

from specpipe.stages.drafters.parts.block.proposal import PlainBlocks

W1, W2 = "markov_head.markov_w1", "markov_head.markov_w2"
CONFIDENCE = "confidence_head.proj"


class PlainDSpark(PlainBlocks):
    """The exported drafter."""

    __slots__ = ()

    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """[h ; W1[token before]] [K, R, X] of every step at the starts [begin, end), end < T.

        A step whose token before lies outside the sample is given token 0; it means nothing.
        """
        slots_RKH = self.slots(input_ids_T, aux_TLH, begin, end, num_steps)
        tokens = torch.cat([input_ids_T.long(), torch.zeros(num_steps, dtype=torch.int64)])
        before_RK = tokens.unfold(0, num_steps, 1)[begin + 1 : end + 1]
        outputs_RKX = torch.cat([self._norm("norm", slots_RKH), self.table(before_RK)], dim=-1)
        return outputs_RKX.transpose(0, 1)

    def table(self, tokens: Tensor) -> Tensor:
        """W1 of these tokens."""
        return self.tensors[f"{W1}.weight"][tokens]

    def logits(self, hidden_RX: Tensor, step: int) -> Tensor:
        """[R, D]; every step has the same head."""
        hidden_RH, before_Rr = hidden_RX.split(
            [self.layer["hidden_size"], self.config["markov_rank"]], dim=-1
        )
        return self._linear("lm_head", hidden_RH) + self._linear(W2, before_Rr)

    def confidence(self, hidden_RX: Tensor) -> Tensor:
        """How probably each draft is accepted, [R]."""
        logits_R1 = self._linear(CONFIDENCE, hidden_RX) + self.tensors[f"{CONFIDENCE}.bias"]
        return logits_R1.sigmoid().squeeze(-1)
