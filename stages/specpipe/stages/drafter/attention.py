"""Attention of the unrolled drafter, in memory that is linear in the number of tokens.

A start's query in draft step k sees the step-1 keys at and before its own position in its sample,
and its own chain: the keys of its steps 2..k. The step-1 part runs through a flash kernel that
returns its log-sum-exp; the chain's few scores are merged into it by log-sum-exp. For the backward
pass the flash kernel is given the *merged* output and log-sum-exp: its probabilities
exp(score - lse) and its row sum of dO*O are then those of the whole softmax, so its gradients are
right for its keys, and the chain's part is elementwise.

A span's starts are consecutive, so their step-1 keys are two blocks: everything of the sample
before the span (not causal) and the span itself (causal and square).

Legend: T keys (packed positions), N queries (starts), C chain length, h query heads,
g key/value heads, E head size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specpipe.stages.drafter.batch import SpanOfStarts
from specpipe.stages.drafter.flash import flash_backward, flash_forward


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries [q0, q1) against keys [k0, k1)."""

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool


def _blocks(spans: Sequence[SpanOfStarts]) -> Iterator[_Block]:
    at = 0
    for span in spans:
        q0, q1 = at, at + span.num_starts
        if span.begin > span.sample:
            yield _Block(q0, q1, span.sample, span.begin, causal=False)
        yield _Block(q0, q1, span.begin, span.end, causal=True)
        at = q1


def chain_attention(
    q_NhE: Tensor,
    k_TgE: Tensor,
    v_TgE: Tensor,
    chain: Sequence[tuple[Tensor, Tensor]],
    spans: Sequence[SpanOfStarts],
) -> Tensor:
    """Attention output [N, h, E] of one draft step; differentiable in q, k, v and the chain.

    `chain` holds the (key, value) of steps 2..k, each [N, g, E]. The scale is 1/sqrt(E); h is a
    multiple of g (grouped queries).
    """
    flat = [tensor for pair in chain for tensor in pair]
    out: Tensor = _ChainAttention.apply(  # type: ignore[no-untyped-call]
        q_NhE, k_TgE, v_TgE, tuple(spans), *flat
    )
    return out


class _ChainAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_NhE: Tensor, k_TgE: Tensor, v_TgE: Tensor, spans: Any, *chain: Tensor
    ) -> Tensor:
        scale = q_NhE.shape[-1] ** -0.5
        out_NhE = torch.zeros_like(q_NhE, dtype=_wide(q_NhE))
        lse_Nh = out_NhE.new_full(q_NhE.shape[:2], -torch.inf)
        for block in _blocks(spans):
            part_out, part_lse = flash_forward(
                q_NhE[block.q0 : block.q1],
                k_TgE[block.k0 : block.k1],
                v_TgE[block.k0 : block.k1],
                block.causal,
                scale,
            )
            _merge(out_NhE[block.q0 : block.q1], lse_Nh[block.q0 : block.q1], part_out, part_lse)
        for key_NgE, value_NgE in zip(chain[::2], chain[1::2], strict=True):
            score_Nh = _chain_scores(q_NhE, key_NgE) * scale
            _merge(out_NhE, lse_Nh, _to_query_heads(value_NgE, q_NhE.shape[1]), score_Nh)
        out_NhE = out_NhE.to(q_NhE.dtype)
        ctx.spans = spans
        ctx.scale = scale
        ctx.save_for_backward(q_NhE, k_TgE, v_TgE, out_NhE, lse_Nh, *chain)
        return out_NhE

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dout_NhE,) = grad_outputs
        q_NhE, k_TgE, v_TgE, out_NhE, lse_Nh, *chain = ctx.saved_tensors
        dout_NhE = dout_NhE.contiguous()
        wide = _wide(q_NhE)
        dq_NhE = torch.zeros_like(q_NhE, dtype=wide)
        dk_TgE = torch.zeros_like(k_TgE, dtype=wide)
        dv_TgE = torch.zeros_like(v_TgE, dtype=wide)
        for block in _blocks(ctx.spans):
            queries, keys = slice(block.q0, block.q1), slice(block.k0, block.k1)
            dq, dk, dv = flash_backward(
                dout_NhE[queries],
                q_NhE[queries],
                k_TgE[keys],
                v_TgE[keys],
                out_NhE[queries],
                lse_Nh[queries],
                block.causal,
                ctx.scale,
            )
            dq_NhE[queries] += dq
            dk_TgE[keys] += dk
            dv_TgE[keys] += dv
        dout = dout_NhE.to(wide)
        delta_Nh = (dout * out_NhE).sum(-1)
        grads_chain: list[Tensor] = []
        num_heads, num_kv = q_NhE.shape[1], k_TgE.shape[1]
        for key_NgE, value_NgE in zip(chain[::2], chain[1::2], strict=True):
            prob_Nh = torch.exp(_chain_scores(q_NhE, key_NgE) * ctx.scale - lse_Nh)
            dprob_Nh = (dout * _to_query_heads(value_NgE, num_heads)).sum(-1)
            dscore_Nh1 = (prob_Nh * (dprob_Nh - delta_Nh) * ctx.scale).unsqueeze(-1)
            dq_NhE += dscore_Nh1 * _to_query_heads(key_NgE, num_heads)
            dkey_NgE = _to_kv_heads(dscore_Nh1 * q_NhE, num_kv)
            dvalue_NgE = _to_kv_heads(prob_Nh.unsqueeze(-1) * dout, num_kv)
            grads_chain += [dkey_NgE.to(key_NgE.dtype), dvalue_NgE.to(value_NgE.dtype)]
        dtype = q_NhE.dtype
        return (dq_NhE.to(dtype), dk_TgE.to(dtype), dv_TgE.to(dtype), None, *grads_chain)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _merge(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor) -> None:
    """Fold one part of a softmax into the running (out, lse), in place."""
    total = torch.logaddexp(lse, part_lse)
    out.mul_(torch.exp(lse - total).unsqueeze(-1))
    out.add_(torch.exp(part_lse - total).unsqueeze(-1) * part_out)
    lse.copy_(total)


def _to_query_heads(x_NgE: Tensor, num_heads: int) -> Tensor:
    return x_NgE.repeat_interleave(num_heads // x_NgE.shape[1], dim=1)


def _to_kv_heads(x_NhE: Tensor, num_kv: int) -> Tensor:
    N, h, E = x_NhE.shape
    return x_NhE.view(N, num_kv, h // num_kv, E).sum(2)


def _chain_scores(q_NhE: Tensor, key_NgE: Tensor) -> Tensor:
    return (q_NhE.to(_wide(q_NhE)) * _to_query_heads(key_NgE, q_NhE.shape[1])).sum(-1)
