"""One piece of a softmax: some queries against some keys, with its log-sum-exp.

A softmax over many keys is computed piece by piece and merged by the log-sum-exps. For the backward
pass a piece is given the output and the log-sum-exp of the whole softmax: its probabilities
exp(score - lse) and its row sum of dO*O are then those of the whole, so its gradients are right.

Legend: b batch, a attention heads, n queries and k keys of the piece, E head size.
"""

from typing import Protocol

import torch
from torch import Tensor

_ops = torch.ops.aten


class PieceKernel(Protocol):
    """Attention of one piece. Each query must see at least one key of it."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Output [b, a, n, E] and log-sum-exp [b, a, n]; `mask` is added to the scores."""

    def backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: Tensor | None,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v for the whole softmax's output and log-sum-exp."""


class FlashPiece:
    """CPU: torch's flash kernel. CUDA: torch's memory-efficient kernel. Any strides."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        scale = q.shape[-1] ** -0.5
        if q.is_cpu:
            out, lse = _ops._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale
            )
            return out, lse
        out, lse, _, _ = _ops._scaled_dot_product_efficient_attention(
            q, k, v, mask, True, 0.0, is_causal, scale=scale
        )
        return out, lse[..., : q.shape[2]]  # padded to a multiple of 32 queries

    def backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: Tensor | None,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scale = q.shape[-1] ** -0.5
        if q.is_cpu:
            dq, dk, dv = _ops._scaled_dot_product_flash_attention_for_cpu_backward(
                dout, q, k, v, out, lse.contiguous(), 0.0, is_causal, attn_mask=mask, scale=scale
            )
            return dq, dk, dv
        padding = -lse.shape[-1] % 32
        lse = torch.nn.functional.pad(lse, (0, padding), value=torch.inf)
        unused = torch.zeros((), dtype=torch.int64, device="cpu")
        dq, dk, dv, _ = _ops._scaled_dot_product_efficient_attention_backward(
            dout, q, k, v, mask, out, lse, unused, unused, 0.0,
            [True, True, True, False], is_causal, scale=scale,
        )  # fmt: skip
        return dq, dk, dv


class PlainPiece:
    """Written out, in float32 (float64 for float64); masks alone, no causal flag."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        scores = _scores(q, k, mask)
        return scores.softmax(-1) @ widened(v), scores.logsumexp(-1)

    def backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: Tensor | None,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dout, out = widened(dout), widened(out)
        probs = torch.exp(_scores(q, k, mask) - lse.unsqueeze(-1))
        delta = (dout * out).sum(-1, keepdim=True)
        dscores = probs * (dout @ widened(v).mT - delta) * q.shape[-1] ** -0.5
        return dscores @ widened(k), dscores.mT @ widened(q), probs.mT @ dout


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores: Tensor = widened(q) @ widened(k).mT * q.shape[-1] ** -0.5
    return scores if mask is None else torch.add(scores, mask)


def widened(x: Tensor) -> Tensor:
    """In float32 (float64 for float64)."""
    return x if x.dtype == torch.float64 else x.float()


def as_mask(hidden_nk: Tensor, q: Tensor) -> Tensor:
    """What is added to the scores of queries `q` [b, a, n, E] to hide keys."""
    num_queries, num_keys = hidden_nk.shape
    # CUDA's kernel wants aligned rows.
    mask = q.new_zeros(num_queries, num_keys + -num_keys % 8)[:, :num_keys]
    mask.masked_fill_(hidden_nk, -torch.inf)
    return mask.expand(*q.shape[:2], -1, -1)


def merge(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor) -> None:
    """Fold one piece of a softmax into the running (out, lse), in place."""
    total = torch.logaddexp(lse, part_lse)
    out.mul_(torch.exp(lse - total).unsqueeze(-1))
    out.addcmul_(torch.exp(part_lse - total).unsqueeze(-1), part_out.to(out.dtype))
    lse.copy_(total)
