"""EAGLE-3 written down plainly, to prove exported files with: dense attention, no tricks.

It reads nothing but the artifact's two files and the target's embedding, and shares no code with
the drafter that is trained (model.py). Only the rotary angles are transformers' own.

At start i the target has consumed x[0..i] and emitted x[i+1]. Step k takes token x[i+k] and the
hidden state of step k-1 (step 1: the features of position i) at rope position i+k-1, attends to
all step-1 keys of positions <= i and to its own start's keys of steps 2..k, and predicts x[i+k+1].
Every layer attends so, to keys of its own. With a window, keys that far behind are not seen.

Legend: T tokens, P positions with a next token, N starts, K steps, L aux layers, H hidden size,
A attention heads, E head size, C steps of a chain, D draft vocabulary, V vocabulary.
"""

import torch
from torch import Tensor

from specpipe.stages.drafters.parts.eagle.plain_chain import PlainChain


class PlainDrafter(PlainChain):
    """The exported drafter."""

    @torch.no_grad()
    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """Outputs [K, N, H] of every step at the starts [begin, end), end < T."""
        return self.chain(input_ids_T, self.features(aux_TLH[:end]), begin, end, num_steps)

    def feedback(self, output_NH: Tensor) -> Tensor:
        return self.norm("norm", output_NH) if self.config["norm_output"] else output_NH
