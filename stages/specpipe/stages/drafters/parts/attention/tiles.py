"""Slots of sparse starts over their context, tile by tile.

All slots of a start see the keys of its sample up to the start. A tile takes some starts next to
each other; their slots and the heads of a group are its rows. The keys that all rows see need no
mask: they are the bulk, and one piece. Those near the starts, and with a window those near its
lower edge, are seen by some rows alone: a masked piece each.

Legend: N starts, B slots, R rows (start, slot, head of the group), T keys, g key/value heads,
r query heads per key/value head, E head size; n starts and k keys of one piece.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.stages.drafters.parts.attention.layout import Layout, Tile
from specpipe.stages.drafters.parts.attention.piece import PieceKernel, as_mask, merge, widened

ROWS = 512
"""Rows of one tile: enough to keep a matrix product busy."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Slot b of a start stands at start + offset + b, and sees `window` positions, its own last."""

    num: int
    group: int
    offset: int
    window: int | None

    @property
    def num_with_context(self) -> int:
        """Slots that see a key of the context: the start's own key at least."""
        if self.window is None:
            return self.num
        return min(self.num, max(0, self.window - self.offset))


@dataclass(frozen=True, slots=True)
class TiledContext:
    """Attention of the rows over the context; a part of a softmax, as AttentionKernel."""

    kernel: PieceKernel
    layout: Layout
    slots: Slots
    """All of these see context."""

    def forward(self, q_gRE: Tensor, k_TgE: Tensor, v_TgE: Tensor) -> tuple[Tensor, Tensor]:
        """Output [g, R, E] and log-sum-exp [g, R] in float32 (float64 for float64)."""
        out_gRE = torch.zeros_like(widened(q_gRE))
        lse_gR = out_gRE.new_full(q_gRE.shape[:2], -torch.inf)
        k_gTE, v_gTE = k_TgE.transpose(0, 1), v_TgE.transpose(0, 1)
        for tile, rows in self._tiles():
            q = q_gRE[None, :, rows]
            out, lse = out_gRE[None, :, rows], lse_gR[None, :, rows]
            for keys, is_masked in _pieces(tile, self.slots):
                mask = self._mask(tile, keys, q) if is_masked else None
                part = self.kernel.forward(q, k_gTE[None, :, keys], v_gTE[None, :, keys], mask)
                merge(out, lse, *part)
        return out_gRE, lse_gR

    def backward(
        self,
        dout_gRE: Tensor,
        q_gRE: Tensor,
        k_TgE: Tensor,
        v_TgE: Tensor,
        out_gRE: Tensor,
        lse_gR: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v for the output and log-sum-exp of the whole softmax."""
        dq_gRE, dk_TgE, dv_TgE = (torch.zeros_like(widened(x)) for x in (q_gRE, k_TgE, v_TgE))
        k_gTE, v_gTE, dk_gTE, dv_gTE = (x.transpose(0, 1) for x in (k_TgE, v_TgE, dk_TgE, dv_TgE))
        for tile, rows in self._tiles():
            dout, q, out = (x[None, :, rows] for x in (dout_gRE, q_gRE, out_gRE))
            lse = lse_gR[None, :, rows]
            for keys, is_masked in _pieces(tile, self.slots):
                mask = self._mask(tile, keys, q) if is_masked else None
                k, v = k_gTE[None, :, keys], v_gTE[None, :, keys]
                dq, dk, dv = self.kernel.backward(dout, q, k, v, out, lse, mask)
                dq_gRE[:, rows] += dq[0]
                dk_gTE[:, keys] += dk[0]
                dv_gTE[:, keys] += dv[0]
        return dq_gRE, dk_TgE, dv_TgE

    def _tiles(self) -> Iterator[tuple[Tile, slice]]:
        rows = self.slots.num * self.slots.group
        if rows:
            for tile in self.layout.tiles(max(1, ROWS // rows)):
                yield tile, slice(tile.q0 * rows, tile.q1 * rows)

    def _mask(self, tile: Tile, keys: slice, q: Tensor) -> Tensor:
        slots = self.slots
        starts_n11 = self.layout.starts(q.device)[tile.q0 : tile.q1, None, None]
        keys_k = torch.arange(keys.start, keys.stop, device=q.device)
        hidden_nBk = (keys_k > starts_n11).expand(-1, slots.num, -1)
        if slots.window is not None:
            places_B1 = torch.arange(slots.num, device=q.device)[:, None] + slots.offset
            hidden_nBk = hidden_nBk | (keys_k <= starts_n11 + places_B1 - slots.window)
        hidden_Rk = hidden_nBk.unsqueeze(2).expand(-1, -1, slots.group, -1).reshape(-1, len(keys_k))
        return as_mask(hidden_Rk, q)


def _pieces(tile: Tile, slots: Slots) -> list[tuple[slice, bool]]:
    """Keys of each piece, and whether some row does not see all of them.

    Every row sees a key of each piece: the first start is seen by all in the piece above it, and
    `seen_by_all` in the piece below.
    """
    end = tile.last + 1
    if slots.window is None:
        lowest = seen_by_all = tile.sample
    else:
        below = slots.offset + 1 - slots.window
        lowest = max(tile.sample, tile.first + below)
        seen_by_all = max(tile.sample, tile.last + below + slots.num - 1)
    if lowest == seen_by_all:
        bulk = lowest
    elif seen_by_all < tile.first:
        bulk = seen_by_all + 1
    else:
        return [(slice(lowest, end), True)]
    pieces = [
        (slice(lowest, bulk), True),
        (slice(bulk, tile.first), False),
        (slice(tile.first, end), True),
    ]
    return [(keys, is_masked) for keys, is_masked in pieces if keys.start < keys.stop]
