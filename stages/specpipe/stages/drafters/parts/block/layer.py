"""A decoder layer over blocks of slots.

Context keys are projected from one tensor for all layers: they never pass through a layer.

Legend: T packed positions, N starts, B slots, R rows (start, slot), H hidden size, h query heads,
g key/value heads, E head size.
"""

from torch import Tensor, nn

from specpipe.schemas.drafters.block import BlockShape
from specpipe.stages.drafters.parts.attention.block import BlockRule, block_attention
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.rotary import CosSin
from specpipe.stages.drafters.parts.attention.self_attention import KeyValue, SelfAttention
from specpipe.stages.drafters.parts.mlp import Mlp
from specpipe.stages.drafters.parts.norm import RMSNorm


class BlockLayer(nn.Module):
    """Qwen3's layer: attention over context and own block, then an MLP."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        H, eps = shape.hidden_size, shape.rms_norm_eps
        self.input_layernorm = RMSNorm(H, eps)
        self.self_attn = SelfAttention(shape, sees_token=False)
        self.post_attention_layernorm = RMSNorm(H, eps)
        self.mlp = Mlp(H, shape.intermediate_size)

    def context(self, context_TH: Tensor, cos_sin_T: CosSin) -> KeyValue:
        """The layer's keys and values of the context."""
        weights = self.self_attn.project_tokens(None)
        return self.self_attn.keys_values(context_TH, weights, None, cos_sin_T)

    def forward(
        self,
        hidden_RH: Tensor,
        cos_sin_R: CosSin,
        context_TgE: KeyValue,
        layout: Layout,
        rule: BlockRule,
        num_slots: int,
    ) -> Tensor:
        """[R, H]"""
        attention = self.self_attn
        x_RH, weights = self.input_layernorm(hidden_RH), attention.project_tokens(None)
        queries_RhE = attention.queries(x_RH, weights, None, cos_sin_R)
        own = attention.keys_values(x_RH, weights, None, cos_sin_R)
        queries_NBhE, key_NBgE, value_NBgE = (
            x.unflatten(0, (-1, num_slots)) for x in (queries_RhE, *own)
        )
        attended_NBhE = block_attention(
            queries_NBhE, context_TgE, (key_NBgE, value_NBgE), layout, rule
        )
        hidden_RH = hidden_RH + attention.o_proj(attended_NBhE.flatten(0, 1).flatten(1))
        out: Tensor = hidden_RH + self.mlp(self.post_attention_layernorm(hidden_RH))
        return out
