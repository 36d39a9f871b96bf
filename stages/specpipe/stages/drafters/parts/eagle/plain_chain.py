"""Plain proposals of drafters that draft in a chain, one step after the other.

Legend: T tokens, P positions, N starts, K steps, C steps of a chain, H hidden size, A attention
heads, E head size.
"""

import torch
from torch import Tensor

from specpipe.stages.drafters.parts.eagle.plain import PlainEagle

Keys = list[tuple[Tensor, Tensor]]
"""(key, value) of each step of a layer: of step 1 [P, A, E] at all positions, then [N, A, E]."""


class PlainChain(PlainEagle):
    """An exported drafter that feeds its outputs back."""

    def chain(
        self, input_ids_T: Tensor, state_PH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """Outputs [K, N, H] of every step at the starts [begin, end), end < T, from the hidden
        states that step 1 takes at all positions before `end`.

        A step whose token x[i+k] lies outside the sample is fed token 0; its output means nothing.
        """
        tokens_T = torch.cat([input_ids_T.long(), torch.zeros(num_steps, dtype=torch.int64)])
        seen: list[Keys] = [[] for _ in range(self.layer["num_hidden_layers"])]
        positions_P, starts_N = torch.arange(end), torch.arange(begin, end)
        output_PH = self._step(tokens_T[1 : end + 1], state_PH, positions_P, positions_P, seen)
        outputs = [output_PH[begin:end]]
        for step in range(2, num_steps + 1):
            tokens_N, hidden_NH = tokens_T[starts_N + step], self.feedback(outputs[-1])
            outputs.append(self._step(tokens_N, hidden_NH, starts_N, starts_N + step - 1, seen))
        return torch.stack(outputs)

    def feedback(self, output_NH: Tensor) -> Tensor:
        """What the next step takes of an output."""
        return output_NH

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


def chain_attend(query_NAE: Tensor, starts_N: Tensor, keys: Keys, window: int | None) -> Tensor:
    """Attention over the step-1 keys of positions <= start, and each start's own chain.

    The query stands as many positions beyond its start as its chain is long.
    """
    (key_PAE, value_PAE), *chain = keys
    scale = query_NAE.shape[-1] ** -0.5
    scores_ANP = torch.einsum("nae,pae->anp", query_NAE, key_PAE) * scale
    behind_NP = starts_N[:, None] - torch.arange(len(key_PAE))
    unseen_NP = behind_NP < 0
    if window is not None:
        unseen_NP |= behind_NP + len(chain) >= window
    scores_ANP = scores_ANP.masked_fill(unseen_NP, float("-inf"))
    if not chain:
        return torch.einsum("anp,pae->nae", scores_ANP.softmax(-1), value_PAE)
    key_CNAE, value_CNAE = (torch.stack(parts) for parts in zip(*chain, strict=True))
    scores_ANC = torch.einsum("nae,cnae->anc", query_NAE, key_CNAE) * scale
    weights = torch.cat([scores_ANP, scores_ANC], dim=-1).softmax(-1)
    shared, own = weights[..., : len(key_PAE)], weights[..., len(key_PAE) :]
    return torch.einsum("anp,pae->nae", shared, value_PAE) + torch.einsum(
        "anc,cnae->nae", own, value_CNAE
    )
