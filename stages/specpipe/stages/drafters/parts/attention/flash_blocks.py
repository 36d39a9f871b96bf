"""Flash attention block by block, by the device's own kernel.

Tensors are handed to the kernel as views, key/value heads as a batch whose queries are the heads of
their group: the kernels take any strides, so nothing is copied or repeated.

Legend: T keys, N queries, n queries and k keys of one block, h query heads, g key/value heads,
r query heads per key/value head, E head size.
"""

import torch
from torch import Tensor

from specpipe.stages.drafters.parts.attention.layout import Block, Layout
from specpipe.stages.drafters.parts.attention.piece import FlashPiece, as_mask, merge

_PIECE = FlashPiece()


class FlashBlocks:
    """A block's part of a softmax is merged into the others' by their log-sum-exps."""

    def forward(
        self, q_NhE: Tensor, k_TgE: Tensor, v_TgE: Tensor, layout: Layout, window: int | None
    ) -> tuple[Tensor, Tensor]:
        num_kv = k_TgE.shape[1]
        q_grNE, k_grTE, v_grTE = _grouped(q_NhE, num_kv), *_shared(q_NhE, k_TgE, v_TgE)
        out_NhE = torch.zeros_like(q_NhE, dtype=torch.float32)
        lse_Nh = out_NhE.new_full(q_NhE.shape[:2], -torch.inf)
        out_grNE, lse_grN = _grouped(out_NhE, num_kv), _grouped_rows(lse_Nh, num_kv)
        done = 0
        for block in layout.blocks(window):
            queries, keys = slice(block.q0, block.q1), slice(block.k0, block.k1)
            q = q_grNE[:, :, queries]
            out, lse = _PIECE.forward(
                q, k_grTE[:, :, keys], v_grTE[:, :, keys], *_masking(q, block)
            )
            if block.q0 >= done:
                out_grNE[:, :, queries], lse_grN[:, :, queries] = out, lse
                done = block.q1
            else:
                merge(out_grNE[:, :, queries], lse_grN[:, :, queries], out, lse)
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
        num_kv, dtype = k_TgE.shape[1], q_NhE.dtype
        q_grNE, k_grTE, v_grTE = _grouped(q_NhE, num_kv), *_shared(q_NhE, k_TgE, v_TgE)
        dout_grNE = _grouped(dout_NhE.to(dtype), num_kv)
        out_grNE = _grouped(out_NhE.to(dtype), num_kv)
        lse_grN = _grouped_rows(lse_Nh, num_kv)
        dq_NhE, dk_TgE, dv_TgE = (
            torch.zeros_like(x, dtype=torch.float32) for x in (q_NhE, k_TgE, v_TgE)
        )
        dq_grNE, dk_gTE, dv_gTE = (
            _grouped(dq_NhE, num_kv), dk_TgE.transpose(0, 1), dv_TgE.transpose(0, 1)
        )  # fmt: skip
        for block in layout.blocks(window):
            queries, keys = slice(block.q0, block.q1), slice(block.k0, block.k1)
            q = q_grNE[:, :, queries]
            dq, dk, dv = _PIECE.backward(
                dout_grNE[:, :, queries],
                q,
                k_grTE[:, :, keys],
                v_grTE[:, :, keys],
                out_grNE[:, :, queries],
                lse_grN[:, :, queries],
                *_masking(q, block),
            )
            dq_grNE[:, :, queries] += dq
            dk_gTE[:, keys] += dk.sum(1)
            dv_gTE[:, keys] += dv.sum(1)
        return dq_NhE, dk_TgE, dv_TgE


def _masking(q: Tensor, block: Block) -> tuple[Tensor | None, bool]:
    """The kernel's own causal flag, and before it the mask of what that flag cannot say."""
    if not block.causal or (block.is_square and block.window is None):
        return None, block.causal
    return as_mask(block.hidden(q.device), q), False


def _grouped(x_NhE: Tensor, num_kv: int) -> Tensor:
    """View [g, r, N, E]."""
    out: Tensor = x_NhE.unflatten(1, (num_kv, -1)).permute(1, 2, 0, 3)
    return out


def _grouped_rows(x_Nh: Tensor, num_kv: int) -> Tensor:
    """View [g, r, N]."""
    out: Tensor = x_Nh.unflatten(1, (num_kv, -1)).permute(1, 2, 0)
    return out


def _shared(q_NhE: Tensor, *xs_TgE: Tensor) -> tuple[Tensor, ...]:
    """Views [g, r, T, E], the same for all r query heads of a group."""
    group = q_NhE.shape[1] // xs_TgE[0].shape[1]
    return tuple(x.transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1) for x in xs_TgE)
