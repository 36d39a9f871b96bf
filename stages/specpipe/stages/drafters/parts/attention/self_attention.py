"""Queries, keys and values of a drafter's layer.

The first layer projects [embedding; hidden], 2H wide. The embedding's half depends on the token
alone, so it is projected once per packed token, and each draft step adds its rows.

Legend: T packed positions, X rows of a step, H hidden size, h query heads, g key/value heads,
E head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specpipe.schemas.drafters.base import LayerShape
from specpipe.stages.drafters.parts.attention.rotary import CosSin, rotate
from specpipe.stages.drafters.parts.norm import RMSNorm

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Projections:
    """The layer's weights for the hidden state, and what the tokens' embeddings add.

    Weights are [heads * E, H]; additions [T, heads * E], by the packed position of the token, or
    None in a layer that does not see the token.
    """

    weights: tuple[Tensor, Tensor, Tensor]
    additions: tuple[Tensor, Tensor, Tensor] | None


class SelfAttention(nn.Module):
    """The projections, with `qwen3` norms of queries and keys per head, and rope."""

    def __init__(self, shape: LayerShape, *, sees_token: bool) -> None:
        super().__init__()
        H = shape.hidden_size
        width = 2 * H if sees_token else H
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.hidden_size, self.head_dim = H, shape.head_dim
        self.q_proj = nn.Linear(width, queries, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(queries, H, bias=False)
        self.has_norms = shape.layer_type == "qwen3"
        if self.has_norms:
            self.q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
            self.k_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)

    def project_tokens(self, embedded_TH: Tensor | None) -> Projections:
        """Once per batch, from normed embeddings."""
        weights = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight
        if embedded_TH is None:
            return Projections(weights, None)
        halves = [weight.split(self.hidden_size, dim=1) for weight in weights]
        (of_q, q), (of_k, k), (of_v, v) = halves
        add_q, add_k, add_v = (nn.functional.linear(embedded_TH, w) for w in (of_q, of_k, of_v))
        return Projections((q, k, v), (add_q, add_k, add_v))

    def queries(
        self, x_XH: Tensor, of: Projections, rows_X: Tensor | None, cos_sin: CosSin
    ) -> Tensor:
        """[X, h, E] with rope; `rows_X` are the packed positions of the tokens that it sees."""
        queries_XhE = self._heads(_projected(x_XH, of, 0, rows_X))
        if self.has_norms:
            queries_XhE = self.q_norm(queries_XhE).to(queries_XhE.dtype)
        return rotate(queries_XhE, cos_sin)

    def keys_values(
        self, x_XH: Tensor, of: Projections, rows_X: Tensor | None, cos_sin: CosSin
    ) -> KeyValue:
        """Each [X, g, E], keys with rope."""
        keys_XgE = self._heads(_projected(x_XH, of, 1, rows_X))
        if self.has_norms:
            keys_XgE = self.k_norm(keys_XgE).to(keys_XgE.dtype)
        return rotate(keys_XgE, cos_sin), self._heads(_projected(x_XH, of, 2, rows_X))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), x.shape[-1] // self.head_dim, self.head_dim)


def _projected(x_XH: Tensor, of: Projections, which: int, rows_X: Tensor | None) -> Tensor:
    weight = of.weights[which]
    if of.additions is None or rows_X is None:
        return nn.functional.linear(x_XH, weight)
    return torch.addmm(of.additions[which][rows_X], x_XH, weight.T)
