"""A decoder layer of a chain drafter, in its first draft step and in the later ones.

Legend: N starts, H hidden size.
"""

from collections.abc import Sequence

from torch import Tensor

from specpipe.stages.drafters.parts.attention.chain import chain_attention
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.rotary import CosSin
from specpipe.stages.drafters.parts.attention.self_attention import KeyValue, Projections
from specpipe.stages.drafters.parts.eagle.layer import EagleLayer


class ChainLayer(EagleLayer):
    """In a later step, attention over the step-1 keys and the own chain."""

    def next_step(
        self,
        hidden_NH: Tensor,
        tokens_N: Tensor,
        shared: Projections,
        cos_sin_N: CosSin,
        keys: Sequence[KeyValue],
        layout: Layout,
    ) -> tuple[Tensor, KeyValue]:
        """Output [N, H], and the step's key and value.

        `keys` are those of step 1, then those of the own chain, which gains the step's.
        """
        step_1, *chain = keys
        x_NH, residual_NH = self.attention_input(hidden_NH)
        own = self.self_attn.keys_values(x_NH, shared, tokens_N, cos_sin_N)
        queries_NhE = self.self_attn.queries(x_NH, shared, tokens_N, cos_sin_N)
        attended_NhE = chain_attention(
            queries_NhE, step_1, (*chain, own), layout, self.window, self.attention
        )
        return self.finish(attended_NhE, residual_NH), own
