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

from specpipe.stages.drafters.parts.eagle.plain import Keys, PlainEagle, chain_attend


class PlainDrafter(PlainEagle):
    """The exported drafter."""

    @torch.no_grad()
    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """Outputs [K, N, H] of every step at the starts [begin, end), end < T.

        A step whose token x[i+k] lies outside the sample is fed token 0; its output means nothing.
        """
        tokens_T = torch.cat([input_ids_T.long(), torch.zeros(num_steps, dtype=torch.int64)])
        seen: list[Keys] = [[] for _ in range(self.layer["num_hidden_layers"])]
        positions_P = torch.arange(end)
        output_PH = self._step(
            tokens_T[1 : end + 1], self.features(aux_TLH[:end]), positions_P, positions_P, seen
        )
        starts_N = torch.arange(begin, end)
        outputs = [output_PH[begin:end]]
        for step in range(2, num_steps + 1):
            hidden_NH = self._feedback(outputs[-1])
            positions_N = starts_N + step - 1
            outputs.append(
                self._step(tokens_T[starts_N + step], hidden_NH, starts_N, positions_N, seen)
            )
        return torch.stack(outputs)

    def _step(
        self,
        tokens_N: Tensor,
        hidden_NH: Tensor,
        starts_N: Tensor,
        positions_N: Tensor,
        seen: list[Keys],
    ) -> Tensor:
        """All layers at these starts; each layer's keys join those that it has seen."""
        for number, keys in enumerate(seen):
            inputs, residual_NH = self.attention_input(number, tokens_N, hidden_NH)
            query, key, value = self.projected(number, inputs, positions_N)
            keys.append((key, value))
            mixed_NAE = chain_attend(query, starts_N, keys, self.layer.get("sliding_window"))
            hidden_NH = self.after_attention(number, residual_NH, mixed_NAE)
        return hidden_NH

    def _feedback(self, output_NH: Tensor) -> Tensor:
        return self.norm("norm", output_NH) if self.config["norm_output"] else output_NH
