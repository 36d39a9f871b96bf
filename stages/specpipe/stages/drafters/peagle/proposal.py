"""P-EAGLE written down plainly, to prove exported files with: dense attention, no tricks.

It reads nothing but the artifact's two files and the target's embedding, and shares no code with
the drafter that is trained (model.py).

At start i the target has consumed x[0..i] and emitted x[i+1]. Row j of the text stands at position
j, takes token x[j+1] and the features of position j, and sees the rows up to itself. Masked row d
of the start stands at position i+d, takes the mask token and the features of `mask_hidden`, and
sees the rows of the text up to i and the masked rows up to itself. Row i predicts x[i+2], masked
row d predicts x[i+d+2]. With a window, keys that far behind are not seen.

Legend: T tokens, P positions with a next token, N starts, n starts of a block, K steps, L aux
layers, H hidden size, A attention heads, E head size, X query rows, Y keys.
"""

import torch
from torch import Tensor

from specpipe.stages.drafters.parts.eagle.plain import PlainEagle
from specpipe.stages.drafters.peagle.artifact import mask_token

STARTS = 32
"""Starts whose masked rows are computed together."""


class PlainDrafter(PlainEagle):
    """The exported drafter."""

    @torch.no_grad()
    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """Outputs [K, N, H] of every step at the starts [begin, end), end < T."""
        tokens_P, positions_P = input_ids_T[1 : end + 1].long(), torch.arange(end)
        causal_PP = positions_P[:, None] >= positions_P
        hidden_PH, of_text = self.features(aux_TLH[:end]), []
        for number in range(self.layer["num_hidden_layers"]):
            inputs, residual_PH = self.attention_input(number, tokens_P, hidden_PH)
            query, key, value = self.projected(number, inputs, positions_P)
            seen_PP = causal_PP & self._in_window(positions_P, positions_P)
            mixed = _attend(query, key, value, seen_PP)
            hidden_PH = self.after_attention(number, residual_PH, mixed)
            of_text.append((key, value))
        first_1RH = hidden_PH[None, begin:end]
        if num_steps == 1:
            return first_1RH
        blocks = [
            self._masked(torch.arange(first, min(first + STARTS, end)), num_steps - 1, of_text)
            for first in range(begin, end, STARTS)
        ]
        return torch.cat([first_1RH, torch.cat(blocks, dim=1)])

    def _masked(
        self, starts_n: Tensor, num_rows: int, of_text: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Outputs [K-1, n, H] of the masked rows behind these starts."""
        starts_X = starts_n.repeat_interleave(num_rows)
        positions_X = starts_X + torch.arange(1, num_rows + 1).repeat(len(starts_n))
        tokens_X = torch.full_like(positions_X, mask_token(self.config))
        mask_1LH = self.tensors["mask_hidden"].view(1, len(self.aux_layers), -1)
        hidden_XH = self.features(mask_1LH).expand(len(positions_X), -1)
        text_P = torch.arange(len(of_text[0][0]))
        own_XX = (starts_X[:, None] == starts_X) & (positions_X[:, None] >= positions_X)
        seen_XY = torch.cat([starts_X[:, None] >= text_P, own_XX], dim=1)
        seen_XY &= self._in_window(positions_X, torch.cat([text_P, positions_X]))
        for number, (key_PAE, value_PAE) in enumerate(of_text):
            inputs, residual_XH = self.attention_input(number, tokens_X, hidden_XH)
            query, key, value = self.projected(number, inputs, positions_X)
            keys, values = torch.cat([key_PAE, key]), torch.cat([value_PAE, value])
            mixed = _attend(query, keys, values, seen_XY)
            hidden_XH = self.after_attention(number, residual_XH, mixed)
        return hidden_XH.view(len(starts_n), num_rows, -1).transpose(0, 1)

    def _in_window(self, positions_X: Tensor, keys_Y: Tensor) -> Tensor:
        """bool [X, Y]: keys that do not lie too far behind."""
        behind_XY = positions_X[:, None] - keys_Y
        window = self.layer.get("sliding_window")
        return (
            torch.ones_like(behind_XY, dtype=torch.bool) if window is None else behind_XY < window
        )


def _attend(query_XAE: Tensor, key_YAE: Tensor, value_YAE: Tensor, seen_XY: Tensor) -> Tensor:
    """[X, A, E]"""
    scores_AXY = torch.einsum("xae,yae->axy", query_XAE, key_YAE) * query_XAE.shape[-1] ** -0.5
    weights_AXY = scores_AXY.masked_fill(~seen_XY, float("-inf")).softmax(-1)
    return torch.einsum("axy,yae->xae", weights_AXY, value_YAE)
