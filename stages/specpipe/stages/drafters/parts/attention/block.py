"""Attention of blocks: the slots that each start has of its own, over its context and themselves.

A start has B slots; slot b stands at the position start + offset + b. It sees the context keys of
its sample up to the start, and own keys of its start: those of slots up to itself where the block
is causal, of all slots else. With a window of w it sees of both only what lies above its position
minus w, so the lower edge moves with the slot.

The context's part runs through a flash kernel, tile by tile; the own part is a small matrix per
start; the two are merged by log-sum-exp. Memory is linear in the numbers of tokens and of rows.

Legend: T context keys (packed positions), N starts, B slots, h query heads, g key/value heads,
r query heads per key/value head, E head size; R rows (start, slot, head of the group).
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from specpipe.schemas.settings.train import AttentionName
from specpipe.stages.drafters.parts.attention.kernel import piece_kernel
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.piece import PieceKernel, merge, widened
from specpipe.stages.drafters.parts.attention.self_attention import KeyValue
from specpipe.stages.drafters.parts.attention.tiles import Slots, TiledContext


@dataclass(frozen=True, slots=True)
class BlockRule:
    """What the slots of a start see, and the kernel."""

    causal: bool
    """Slot b sees the own slots up to b; all of them where false."""
    window: int | None = None
    """Positions that a slot sees, its own included."""
    offset: int = 1
    """Slot 0 stands this far beyond its start."""
    attention: AttentionName = "auto"

    def hidden(self, num_slots: int, device: torch.device) -> Tensor:
        """bool [B, B]: the own keys (second axis) that a slot (first axis) must not see."""
        every = torch.ones(num_slots, num_slots, dtype=torch.bool, device=device)
        hidden = every.triu(1) if self.causal else ~every
        return hidden if self.window is None else hidden | every.tril(-self.window)


def block_attention(
    q_NBhE: Tensor, context_TgE: KeyValue, own_NBgE: KeyValue, layout: Layout, rule: BlockRule
) -> Tensor:
    """Attention output [N, B, h, E]; differentiable in q, and in both pairs of keys and values.

    Rows of q are the starts of the layout. The scale is 1/sqrt(E); h is a multiple of g (grouped
    queries). A row that the layout does not cover sees its own block alone.
    """
    assert rule.window is None or rule.window > 0, "a slot sees itself"
    kernel = piece_kernel(rule.attention, q_NBhE)
    out: Tensor = _BlockAttention.apply(  # type: ignore[no-untyped-call]
        q_NBhE, *context_TgE, *own_NBgE, layout, rule, kernel
    )
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_NBhE: Tensor,
        k_TgE: Tensor,
        v_TgE: Tensor,
        own_k_NBgE: Tensor,
        own_v_NBgE: Tensor,
        layout: Layout,
        rule: BlockRule,
        kernel: PieceKernel,
    ) -> Tensor:
        with _without_autocast(q_NBhE.device.type):
            q_gNBrE = _by_group(q_NBhE, k_TgE.shape[1])
            context = _context(q_gNBrE, layout, rule, kernel)
            seeing = slice(context.slots.num)
            out_gNBrE = torch.zeros_like(widened(q_gNBrE))
            lse_gNBr = out_gNBrE.new_full(q_gNBrE.shape[:4], -torch.inf)
            out_gRE, lse_gR = context.forward(q_gNBrE[:, :, seeing].flatten(1, 3), k_TgE, v_TgE)
            out_gNBrE[:, :, seeing] = out_gRE.view_as(out_gNBrE[:, :, seeing])
            lse_gNBr[:, :, seeing] = lse_gR.view_as(lse_gNBr[:, :, seeing])
            own = _own_scores(q_gNBrE, own_k_NBgE, rule)
            own_lse = own.logsumexp(-1)
            own_out = torch.exp(own - own_lse.unsqueeze(-1)) @ _own(own_v_NBgE)
            merge(out_gNBrE, lse_gNBr, own_out.view_as(out_gNBrE), own_lse.view_as(lse_gNBr))
        out_NBhE = _by_start(out_gNBrE).to(q_NBhE.dtype)
        ctx.context, ctx.rule = context, rule
        ctx.save_for_backward(q_NBhE, k_TgE, v_TgE, own_k_NBgE, own_v_NBgE, out_NBhE, lse_gNBr)
        return out_NBhE

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q_NBhE, k_TgE, v_TgE, own_k_NBgE, own_v_NBgE, out_NBhE, lse_gNBr = ctx.saved_tensors
        num_kv, dtype, scale = k_TgE.shape[1], q_NBhE.dtype, q_NBhE.shape[-1] ** -0.5
        with _without_autocast(q_NBhE.device.type):
            dout_gNBrE, q_gNBrE, out_gNBrE = (
                _by_group(x.to(dtype), num_kv) for x in (grad_outputs[0], q_NBhE, out_NBhE)
            )
            seeing = slice(ctx.context.slots.num)
            dout_gRE, q_gRE, out_gRE, lse_gR = (
                x[:, :, seeing].flatten(1, 3) for x in (dout_gNBrE, q_gNBrE, out_gNBrE, lse_gNBr)
            )
            dq_gRE, dk_TgE, dv_TgE = ctx.context.backward(
                dout_gRE, q_gRE, k_TgE, v_TgE, out_gRE, lse_gR
            )
            probs = torch.exp(
                _own_scores(q_gNBrE, own_k_NBgE, ctx.rule) - lse_gNBr.flatten(2).unsqueeze(-1)
            )
            dout, out = (widened(x).flatten(2, 3) for x in (dout_gNBrE, out_gNBrE))
            delta = (dout * out).sum(-1, keepdim=True)
            dscores = probs * (dout @ _own(own_v_NBgE).mT - delta) * scale
            dq_gNBrE = (dscores @ _own(own_k_NBgE)).view_as(q_gNBrE)
            dq_gNBrE[:, :, seeing] += dq_gRE.view_as(dq_gNBrE[:, :, seeing])
            own_dk = dscores.mT @ widened(q_gNBrE).flatten(2, 3)
            own_dv = probs.mT @ dout
        gradients = _by_start(dq_gNBrE), dk_TgE, dv_TgE, *(_own_back(x) for x in (own_dk, own_dv))
        return (*(x.to(dtype) for x in gradients), None, None, None)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """The own block's products stay as wide as their factors."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _context(q_gNBrE: Tensor, layout: Layout, rule: BlockRule, kernel: PieceKernel) -> TiledContext:
    _, _, B, group, _ = q_gNBrE.shape
    slots = Slots(B, group, rule.offset, rule.window)
    return TiledContext(kernel, layout, replace(slots, num=slots.num_with_context))


def _own_scores(q_gNBrE: Tensor, own_k_NBgE: Tensor, rule: BlockRule) -> Tensor:
    """[g, N, B * r, B]: of each slot's heads with the own keys, -inf where it does not see one."""
    q_gNbE = widened(q_gNBrE).flatten(2, 3)
    scores: Tensor = q_gNbE @ _own(own_k_NBgE).mT * q_gNbE.shape[-1] ** -0.5
    hidden_BB = rule.hidden(q_gNBrE.shape[2], q_gNBrE.device)
    return scores.masked_fill_(hidden_BB.repeat_interleave(q_gNBrE.shape[3], 0), -torch.inf)


def _own(x_NBgE: Tensor) -> Tensor:
    """[g, N, B, E], wide."""
    return widened(x_NBgE).permute(2, 0, 1, 3)


def _own_back(x_gNBE: Tensor) -> Tensor:
    return x_gNBE.permute(1, 2, 0, 3)


def _by_group(x_NBhE: Tensor, num_kv: int) -> Tensor:
    """[g, N, B, r, E], contiguous."""
    out: Tensor = x_NBhE.unflatten(2, (num_kv, -1)).permute(2, 0, 1, 3, 4).contiguous()
    return out


def _by_start(x_gNBrE: Tensor) -> Tensor:
    """[N, B, h, E], contiguous."""
    return x_gNBrE.permute(1, 2, 0, 3, 4).flatten(2, 3)
