"""A decoder layer of P-EAGLE at its masked rows.

Legend: R masked rows, X input rows: R, or one that all rows share; H hidden size, h query heads,
g key/value heads, E head size, n starts of a group, B masked rows of each.
"""

import torch
from torch import Tensor

from specpipe.stages.drafters.parts.attention.block import BlockRule, block_attention
from specpipe.stages.drafters.parts.attention.rotary import CosSin
from specpipe.stages.drafters.parts.attention.self_attention import KeyValue, Projections
from specpipe.stages.drafters.parts.eagle.layer import EagleLayer
from specpipe.stages.drafters.peagle.rows import MaskedRows


class Layer(EagleLayer):
    """A masked row sees the rows of the text up to its start, and its start's masked rows up to
    itself."""

    def masked_step(
        self,
        hidden_XH: Tensor,
        of_mask: Projections,
        cos_sin_R: CosSin,
        of_text: KeyValue,
        rows: MaskedRows,
    ) -> Tensor:
        """Output [R, H]; `of_text` are the layer's keys and values at the rows of the text.

        Where all rows have one input, all but the rotation is computed once.
        """
        x_XH, residual_XH = self.attention_input(hidden_XH)
        first_X = torch.zeros(len(x_XH), dtype=torch.int64, device=x_XH.device)
        queries_RhE = self.self_attn.queries(x_XH, of_mask, first_X, cos_sin_R)
        keys_RgE, values_XgE = self.self_attn.keys_values(x_XH, of_mask, first_X, cos_sin_R)
        values_RgE = values_XgE.expand(len(keys_RgE), -1, -1)
        rule = BlockRule(causal=True, window=self.window, attention=self.attention)
        attended, at = [queries_RhE[:0]], 0
        for group in rows.groups:
            q_nBhE, k_nBgE, v_nBgE = (
                x[at : at + group.total].unflatten(0, (-1, group.num_rows))
                for x in (queries_RhE, keys_RgE, values_RgE)
            )
            out_nBhE = block_attention(q_nBhE, of_text, (k_nBgE, v_nBgE), group.layout, rule)
            attended.append(out_nBhE.flatten(0, 1))
            at += group.total
        return self.finish(torch.cat(attended), residual_XH)
