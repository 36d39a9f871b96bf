"""CUDA's flash kernel for sequences of various lengths: one call for all samples of a batch.

Legend: T keys, N queries, C those of a span, R these with what lies between a sample's spans,
h query heads, g key/value heads, E head size.
"""

import torch
from torch import Tensor

from specpipe.stages.drafters.parts.attention.layout import Layout, Runs

_ops = torch.ops.aten


class FlashVarlen:
    """Half precision. A sample is a sequence: its keys, and its queries, aligned at their ends."""

    def forward(
        self, q_NhE: Tensor, k_TgE: Tensor, v_TgE: Tensor, layout: Layout, window: int | None
    ) -> tuple[Tensor, Tensor]:
        out_NhE = torch.zeros_like(q_NhE, dtype=torch.float32)
        lse_Nh = out_NhE.new_full(q_NhE.shape[:2], -torch.inf)
        if not layout.spans:
            return out_NhE, lse_Nh
        runs = layout.runs(q_NhE.device)
        queries_C = runs.queries_C
        out_RhE, lse_hR, *_ = _ops._flash_attention_forward(
            _spread(q_NhE[queries_C], runs),
            k_TgE[runs.keys_T],
            v_TgE[runs.keys_T],
            runs.ends_R,
            runs.ends_T,
            runs.most_rows,
            runs.most_keys,
            0.0,
            window is None,
            False,
            scale=q_NhE.shape[-1] ** -0.5,
            window_size_left=_left(window),
            window_size_right=0,
        )
        out_NhE[queries_C] = out_RhE[runs.rows_C].float()
        lse_Nh[queries_C] = lse_hR.T[runs.rows_C]
        return out_NhE, lse_Nh

    def backward(
        self,
        dout_NhE: Tensor,
        q_NhE: Tensor,
        k_TgE: Tensor,
        v_TgE: Tensor,
        out_NhE: Tensor,
        lse_Nh: Tensor,
        layout: Layout,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq_NhE, dk_TgE, dv_TgE = (torch.zeros_like(x) for x in (q_NhE, k_TgE, v_TgE))
        if not layout.spans:
            return dq_NhE, dk_TgE, dv_TgE
        runs, dtype = layout.runs(q_NhE.device), q_NhE.dtype
        queries_C = runs.queries_C
        # Queries that were filled in have dout = 0 and a log-sum-exp of 0: they add nothing.
        unused = torch.zeros(2, dtype=torch.uint64, device=q_NhE.device)
        dq_RhE, dk, dv = _ops._flash_attention_backward(
            _spread(dout_NhE[queries_C].to(dtype), runs),
            _spread(q_NhE[queries_C], runs),
            k_TgE[runs.keys_T],
            v_TgE[runs.keys_T],
            _spread(out_NhE[queries_C].to(dtype), runs),
            _spread(lse_Nh[queries_C], runs).T.contiguous(),
            runs.ends_R,
            runs.ends_T,
            runs.most_rows,
            runs.most_keys,
            0.0,
            window is None,
            unused,
            unused,
            scale=q_NhE.shape[-1] ** -0.5,
            window_size_left=_left(window),
            window_size_right=0,
        )
        dq_NhE[queries_C] = dq_RhE[runs.rows_C]
        dk_TgE[runs.keys_T] = dk
        dv_TgE[runs.keys_T] = dv
        return dq_NhE, dk_TgE, dv_TgE


def _left(window: int | None) -> int:
    """Keys before its own that a query sees; -1: all."""
    return -1 if window is None else window - 1


def _spread(x_C: Tensor, runs: Runs) -> Tensor:
    """[R, ...]: covered queries at their place in the runs, 0 between spans."""
    return x_C.new_zeros(runs.num_rows, *x_C.shape[1:]).index_copy(0, runs.rows_C, x_C)
