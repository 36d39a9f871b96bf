"""A decoder layer of a drafter whose first layer attends with [embedding; hidden], at the rows of
the text; further layers are ordinary decoder layers.

Legend: T packed positions, X rows, H hidden size, h query heads, E head size.
"""

from torch import Tensor, nn

from specpipe.schemas.drafters.base import LayerShape
from specpipe.schemas.settings.train import AttentionName
from specpipe.stages.drafters.parts.attention.chain import chain_attention
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.rotary import CosSin
from specpipe.stages.drafters.parts.attention.self_attention import (
    KeyValue,
    Projections,
    SelfAttention,
)
from specpipe.stages.drafters.parts.mlp import Mlp
from specpipe.stages.drafters.parts.norm import RMSNorm


class EagleLayer(nn.Module):
    """Attention, then an MLP. The position of a row's token among the embedded ones is `tokens`."""

    def __init__(
        self,
        shape: LayerShape,
        *,
        is_first: bool,
        norm_before_residual: bool,
        attention: AttentionName,
    ) -> None:
        super().__init__()
        H, eps = shape.hidden_size, shape.rms_norm_eps
        self.is_first = is_first
        self.attention: AttentionName = attention
        self.window = shape.sliding_window
        self.norm_before_residual = norm_before_residual
        self.input_layernorm = RMSNorm(H, eps)
        if is_first:
            self.hidden_norm = RMSNorm(H, eps)
        self.self_attn = SelfAttention(shape, sees_token=is_first)
        self.post_attention_layernorm = RMSNorm(H, eps)
        self.mlp = Mlp(H, shape.intermediate_size)

    def project_tokens(self, embedded_TH: Tensor) -> Projections:
        """What all rows of a batch share."""
        normed_TH = self.input_layernorm(embedded_TH) if self.is_first else None
        return self.self_attn.project_tokens(normed_TH)

    def first_step(
        self,
        hidden_TH: Tensor,
        tokens_T: Tensor,
        shared: Projections,
        cos_sin_T: CosSin,
        rows_X: Tensor | None,
        layout: Layout,
    ) -> tuple[Tensor, KeyValue]:
        """Output [X, H] at the positions `rows_X` (None: all), and the keys and values of all."""
        x, residual, tokens = *self.attention_input(hidden_TH), tokens_T
        step_1 = self.self_attn.keys_values(x, shared, tokens, cos_sin_T)
        if rows_X is not None:
            cos, sin = cos_sin_T
            x, residual, tokens = x[rows_X], residual[rows_X], tokens[rows_X]
            cos_sin_T = cos[rows_X], sin[rows_X]
        queries = self.self_attn.queries(x, shared, tokens, cos_sin_T)
        attended = chain_attention(queries, step_1, (), layout, self.window, self.attention)
        return self.finish(attended, residual), step_1

    def attention_input(self, hidden_XH: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden half of what is projected, and the residual."""
        norm = self.hidden_norm if self.is_first else self.input_layernorm
        normed_XH = norm(hidden_XH)
        as_residual = self.is_first and self.norm_before_residual
        return normed_XH, normed_XH if as_residual else hidden_XH

    def finish(self, attended_XhE: Tensor, residual_XH: Tensor) -> Tensor:
        """Output [X, H]."""
        hidden_XH = residual_XH + self.self_attn.o_proj(attended_XhE.flatten(1))
        out: Tensor = hidden_XH + self.mlp(self.post_attention_layernorm(hidden_XH))
        return out
