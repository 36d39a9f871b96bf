"""A decoder layer of the drafter, in its first draft step and in the later ones.

The first layer attends with [embedding; hidden], 2H wide; further ones are ordinary decoder layers.
`llama` and `qwen3` layers differ in one thing: qwen3's norm queries and keys per head, before rope.

Legend: T packed positions, N starts, X rows of either kind, W width of the attention input,
H hidden size, h query heads, g key/value heads, E head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specpipe.schemas.checkpoint import DrafterShape
from specpipe.schemas.train_config import AttentionName
from specpipe.stages.drafter.attention import chain_attention
from specpipe.stages.drafter.attention_layout import Layout
from specpipe.stages.drafter.mlp import Mlp
from specpipe.stages.drafter.norm import RMSNorm
from specpipe.stages.drafter.rotary import CosSin, rotate

KeyValue = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Projections of an attention input of the given width."""

    def __init__(self, shape: DrafterShape, width: int) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(width, queries, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)
        self.has_norms = shape.layer_type == "qwen3"
        if self.has_norms:
            self.q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
            self.k_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)

    def keys_values(self, x_XW: Tensor, cos_sin: CosSin) -> KeyValue:
        """Each [X, g, E], keys with rope."""
        keys_XgE = self._heads(self.k_proj(x_XW))
        if self.has_norms:
            keys_XgE = self.k_norm(keys_XgE).to(keys_XgE.dtype)
        return rotate(keys_XgE, cos_sin), self._heads(self.v_proj(x_XW))

    def queries(self, x_XW: Tensor, cos_sin: CosSin) -> Tensor:
        """[X, h, E] with rope."""
        queries_XhE = self._heads(self.q_proj(x_XW))
        if self.has_norms:
            queries_XhE = self.q_norm(queries_XhE).to(queries_XhE.dtype)
        return rotate(queries_XhE, cos_sin)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), x.shape[-1] // self.head_dim, self.head_dim)


class Layer(nn.Module):
    """Attention over the step-1 keys and the own chain, then an MLP."""

    def __init__(self, shape: DrafterShape, *, is_first: bool, attention: AttentionName) -> None:
        super().__init__()
        H, eps = shape.hidden_size, shape.rms_norm_eps
        self.is_first = is_first
        self.attention: AttentionName = attention
        self.window = shape.sliding_window
        self.norm_before_residual = shape.norm_before_residual
        self.input_layernorm = RMSNorm(H, eps)
        if is_first:
            self.hidden_norm = RMSNorm(H, eps)
        self.self_attn = Attention(shape, 2 * H if is_first else H)
        self.post_attention_layernorm = RMSNorm(H, eps)
        self.mlp = Mlp(H, shape.intermediate_size)

    def first_step(
        self,
        hidden_TH: Tensor,
        embedded_TH: Tensor,
        cos_sin_T: CosSin,
        rows_X: Tensor | None,
        layout: Layout,
    ) -> tuple[Tensor, KeyValue]:
        """Output [X, H] at the positions `rows_X` (None: all), and the keys and values of all."""
        x, residual = self._attention_input(hidden_TH, embedded_TH)
        keys, values = self.self_attn.keys_values(x, cos_sin_T)
        if rows_X is not None:
            cos, sin = cos_sin_T
            x, residual, cos_sin_T = x[rows_X], residual[rows_X], (cos[rows_X], sin[rows_X])
        return self._attend(x, residual, cos_sin_T, (keys, values), (), layout), (keys, values)

    def next_step(
        self,
        hidden_NH: Tensor,
        embedded_NH: Tensor,
        cos_sin_N: CosSin,
        step_1: KeyValue,
        chain: Sequence[KeyValue],
        layout: Layout,
    ) -> tuple[Tensor, KeyValue]:
        """Output [N, H], and the step's key and value, which the chain gains."""
        x, residual = self._attention_input(hidden_NH, embedded_NH)
        own = self.self_attn.keys_values(x, cos_sin_N)
        return self._attend(x, residual, cos_sin_N, step_1, (*chain, own), layout), own

    def _attention_input(self, hidden_XH: Tensor, embedded_XH: Tensor) -> tuple[Tensor, Tensor]:
        """What is projected to queries, keys and values, and the residual."""
        if not self.is_first:
            return self.input_layernorm(hidden_XH), hidden_XH
        normed_XH = self.hidden_norm(hidden_XH)
        x_X2H = torch.cat([self.input_layernorm(embedded_XH), normed_XH], dim=-1)
        return x_X2H, normed_XH if self.norm_before_residual else hidden_XH

    def _attend(
        self,
        x_XW: Tensor,
        residual_XH: Tensor,
        cos_sin: CosSin,
        step_1: KeyValue,
        chain: Sequence[KeyValue],
        layout: Layout,
    ) -> Tensor:
        attended_XhE = chain_attention(
            self.self_attn.queries(x_XW, cos_sin),
            *step_1,
            chain,
            layout,
            self.window,
            self.attention,
        )
        hidden_XH = residual_XH + self.self_attn.o_proj(attended_XhE.flatten(1))
        out: Tensor = hidden_XH + self.mlp(self.post_attention_layernorm(hidden_XH))
        return out
