"""Attention over the step-1 keys, written out.

Legend: T keys, N queries, n queries and k keys of one span, h query heads, g key/value heads,
E head size.
"""

import torch
from torch import Tensor

from specpipe.stages.drafters.parts.attention.layout import Layout, QuerySpan
from specpipe.stages.drafters.parts.attention.piece import widened


class ReferenceAttention:
    """One dense softmax per span, in float32 (float64 for float64)."""

    def forward(
        self, q_NhE: Tensor, k_TgE: Tensor, v_TgE: Tensor, layout: Layout, window: int | None
    ) -> tuple[Tensor, Tensor]:
        q_NhE, k_TgE, v_TgE = (widened(x) for x in (q_NhE, k_TgE, v_TgE))
        out_NhE = torch.zeros_like(q_NhE)
        lse_Nh = q_NhE.new_full(q_NhE.shape[:2], -torch.inf)
        for span in layout.spans:
            queries, keys = _rows(span)
            scores_hnk = _scores(q_NhE[queries], k_TgE[keys], span, window)
            value_khE = _to_query_heads(v_TgE[keys], q_NhE.shape[1])
            out_NhE[queries] = torch.einsum("hnk,khe->nhe", scores_hnk.softmax(-1), value_khE)
            lse_Nh[queries] = scores_hnk.logsumexp(-1).T
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
        q_NhE, k_TgE, v_TgE = (widened(x) for x in (q_NhE, k_TgE, v_TgE))
        dout_NhE, out_NhE = widened(dout_NhE), widened(out_NhE)
        dq_NhE, dk_TgE, dv_TgE = (torch.zeros_like(x) for x in (q_NhE, k_TgE, v_TgE))
        num_heads, scale = q_NhE.shape[1], q_NhE.shape[-1] ** -0.5
        for span in layout.spans:
            queries, keys = _rows(span)
            q, dout = q_NhE[queries], dout_NhE[queries]
            key, value = (_to_query_heads(x[keys], num_heads) for x in (k_TgE, v_TgE))
            scores_hnk = _scores(q, k_TgE[keys], span, window)
            probs_hnk = torch.exp(scores_hnk - lse_Nh[queries].T.unsqueeze(-1))
            delta_nh = (dout * out_NhE[queries]).sum(-1)
            dprobs_hnk = torch.einsum("nhe,khe->hnk", dout, value)
            dscores_hnk = probs_hnk * (dprobs_hnk - delta_nh.T.unsqueeze(-1)) * scale
            dq_NhE[queries] += torch.einsum("hnk,khe->nhe", dscores_hnk, key)
            dk_TgE[keys] += _to_kv_heads(torch.einsum("hnk,nhe->khe", dscores_hnk, q), k_TgE)
            dv_TgE[keys] += _to_kv_heads(torch.einsum("hnk,nhe->khe", probs_hnk, dout), k_TgE)
        return dq_NhE, dk_TgE, dv_TgE


def _rows(span: QuerySpan) -> tuple[slice, slice]:
    num_queries = span.end - span.begin
    return slice(span.query, span.query + num_queries), slice(span.sample, span.end)


def _scores(q_nhE: Tensor, k_kgE: Tensor, span: QuerySpan, window: int | None) -> Tensor:
    """[h, n, k], -inf where a query does not see a key."""
    key_khE = _to_query_heads(k_kgE, q_nhE.shape[1])
    scores_hnk = torch.einsum("nhe,khe->hnk", q_nhE, key_khE) * q_nhE.shape[-1] ** -0.5
    ages_nk = torch.arange(span.begin, span.end, device=q_nhE.device)[:, None] - torch.arange(
        span.sample, span.end, device=q_nhE.device
    )
    hidden_nk = ages_nk < 0
    if window is not None:
        hidden_nk |= ages_nk >= window
    out: Tensor = scores_hnk.masked_fill(hidden_nk, -torch.inf)
    return out


def _to_query_heads(x_kgE: Tensor, num_heads: int) -> Tensor:
    return x_kgE.repeat_interleave(num_heads // x_kgE.shape[1], dim=1)


def _to_kv_heads(x_khE: Tensor, like_TgE: Tensor) -> Tensor:
    out: Tensor = x_khE.unflatten(1, (like_TgE.shape[1], -1)).sum(2)
    return out
