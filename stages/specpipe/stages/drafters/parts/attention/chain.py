"""Attention of the unrolled drafter, in memory that is linear in the number of tokens.

A start's query in draft step k sees the step-1 keys at and before its own position in its sample,
and its own chain: the keys of its steps 2..k. The step-1 part runs through a flash kernel that
returns its log-sum-exp; the chain's few scores are merged into it by log-sum-exp. For the backward
pass the flash kernel is given the *merged* output and log-sum-exp: its probabilities
exp(score - lse) and its row sum of dO*O are then those of the whole softmax, so its gradients are
right for its keys, and the chain's part is elementwise.

A sliding window counts positions, and step k stands k - 1 further than its start: its window
reaches k - 1 fewer step-1 keys, and the whole chain.

Legend: T keys (packed positions), N queries (starts), C chain length, h query heads,
g key/value heads, r query heads per key/value head, E head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specpipe.schemas.settings.train import AttentionName
from specpipe.stages.drafters.parts.attention.kernel import AttentionKernel, attention_kernel
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.piece import widened
from specpipe.stages.drafters.parts.attention.self_attention import KeyValue


def chain_attention(
    q_NhE: Tensor,
    step_1_TgE: KeyValue,
    chain_NgE: Sequence[KeyValue],
    layout: Layout,
    window: int | None = None,
    attention: AttentionName = "auto",
) -> Tensor:
    """Attention output [N, h, E] of one draft step; differentiable in q, all keys and all values.

    `chain_NgE` holds the keys and values of steps 2..k. The scale is 1/sqrt(E); h is a multiple of
    g (grouped queries). With a `window`, which must hold the chain and the own key,
    only that many last keys are seen. Rows that the layout does not cover are 0.
    """
    assert window is None or window > len(chain_NgE), "the window holds the chain and the own key"
    flat = [tensor for pair in chain_NgE for tensor in pair]
    kernel = attention_kernel(attention, q_NhE)
    seen = None if window is None else window - len(chain_NgE)
    out: Tensor = _ChainAttention.apply(  # type: ignore[no-untyped-call]
        q_NhE, *step_1_TgE, kernel, layout, seen, *flat
    )
    return out


class _ChainAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_NhE: Tensor,
        k_TgE: Tensor,
        v_TgE: Tensor,
        kernel: AttentionKernel,
        layout: Layout,
        window: int | None,
        *chain: Tensor,
    ) -> Tensor:
        out_NhE, lse_Nh = kernel.forward(q_NhE, k_TgE, v_TgE, layout, window)
        num_kv = k_TgE.shape[1]
        if chain:
            q_NgrE, out_NgrE = _grouped(q_NhE, num_kv), _grouped(out_NhE, num_kv)
            scores_CNgr = torch.stack([_dot(q_NgrE, _spread(key)) for key in chain[::2]])
            scores_CNgr *= q_NhE.shape[-1] ** -0.5
            scores_CNh = scores_CNgr.flatten(2)
            total_Nh = torch.logaddexp(lse_Nh, scores_CNh.logsumexp(0))
            out_NhE.mul_(torch.exp(lse_Nh - total_Nh).unsqueeze(-1))
            probs_CNgr = torch.exp(scores_CNh - total_Nh).view_as(scores_CNgr)
            for prob_Ngr, value_NgE in zip(probs_CNgr, chain[1::2], strict=True):
                out_NgrE.addcmul_(prob_Ngr.unsqueeze(-1), _spread(value_NgE).to(out_NhE.dtype))
            lse_Nh = total_Nh
        else:
            probs_CNgr = lse_Nh.new_zeros(0, *lse_Nh.unflatten(1, (num_kv, -1)).shape)
        out_NhE = out_NhE.to(q_NhE.dtype)
        ctx.kernel, ctx.layout, ctx.window = kernel, layout, window
        ctx.save_for_backward(q_NhE, k_TgE, v_TgE, out_NhE, lse_Nh, probs_CNgr, *chain)
        return out_NhE

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dout_NhE,) = grad_outputs
        q_NhE, k_TgE, v_TgE, out_NhE, lse_Nh, probs_CNgr, *chain = ctx.saved_tensors
        dq_NhE, dk_TgE, dv_TgE = ctx.kernel.backward(
            dout_NhE, q_NhE, k_TgE, v_TgE, out_NhE, lse_Nh, ctx.layout, ctx.window
        )
        num_kv, scale = k_TgE.shape[1], q_NhE.shape[-1] ** -0.5
        grads_chain: list[Tensor] = []
        if chain:
            dq_NhE = dq_NhE.to(lse_Nh.dtype)
            q_NgrE, dq_NgrE = _grouped(q_NhE, num_kv), _grouped(dq_NhE, num_kv)
            dout_NgrE = _grouped(dout_NhE, num_kv)
            delta_Ngr = _dot(dout_NgrE, _grouped(out_NhE, num_kv))
            for prob_Ngr, key_NgE, value_NgE in zip(
                probs_CNgr, chain[::2], chain[1::2], strict=True
            ):
                dprob_Ngr = _dot(dout_NgrE, _spread(value_NgE))
                dscore_Ngr1 = (prob_Ngr * (dprob_Ngr - delta_Ngr) * scale).unsqueeze(-1)
                dq_NgrE.addcmul_(dscore_Ngr1, _spread(key_NgE).to(dq_NhE.dtype))
                dkey_NgE = (dscore_Ngr1 * q_NgrE).sum(2)
                dvalue_NgE = (prob_Ngr.unsqueeze(-1) * dout_NgrE).sum(2)
                grads_chain += [dkey_NgE.to(key_NgE.dtype), dvalue_NgE.to(value_NgE.dtype)]
        dtype = q_NhE.dtype
        gradients = dq_NhE.to(dtype), dk_TgE.to(dtype), dv_TgE.to(dtype)
        return (*gradients, None, None, None, *grads_chain)


def _grouped(x_NhE: Tensor, num_kv: int) -> Tensor:
    """View [N, g, r, E]."""
    N, h, E = x_NhE.shape
    return x_NhE.view(N, num_kv, h // num_kv, E)


def _spread(x_NgE: Tensor) -> Tensor:
    """View [N, g, 1, E], for all query heads of a group."""
    return x_NgE.unsqueeze(2)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over E of the product, in float32 (float64 for float64)."""
    return (widened(a) * b).sum(-1)
