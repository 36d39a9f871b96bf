"""The passes over [rows, D] that the loss takes, by torch operators on reused memory.

Legend: B rows of a block, R rows of a chunk, D draft vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from specpipe.stages.drafter.loss.chunk import VerifierChunk
from specpipe.stages.drafter.loss.row_block import block_rows, top_of_rows


@dataclass(frozen=True, slots=True)
class RowStats:
    """What one look at rows of logits z says of them, with q = softmax(z)."""

    argmax_B: Tensor
    """int64: the draft token that q makes likeliest."""
    logsum_B: Tensor
    """Log-sum-exp of z: log q = z - logsum."""
    score_B: Tensor
    """Sum of p~ z."""
    alpha_B: Tensor
    """Sum of min(p, q)."""
    below_B: Tensor
    """Sum of q where q < p; only what leads to a gradient of the overlap."""

    @classmethod
    def cat(cls, blocks: Sequence["RowStats"]) -> "RowStats":
        """Of the rows of all blocks."""
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(block, name) for block in blocks]) for name in names))


_LEAST_MASS = 1e-26
"""Mass that q is divided by; the overlap of a row with less is taken in log space (row_pass.py)."""


class PlainRows:
    """A block of rows is looked at, and then its logits become their gradient.

    Between the two q / m is kept, which is held to p~ as q is to p: no pass makes p.
    """

    def __init__(self, chunk_rows: int, size: int, like: Tensor) -> None:
        self.most_rows = min(chunk_rows, block_rows(size, like.device))
        self._q_BD, self._t_BD = (like.new_empty(self.most_rows, size) for _ in range(2))
        self._mass_B = like.new_empty(0)

    def alpha(self, logits_BD: Tensor, chunk: VerifierChunk, at_B: Tensor) -> Tensor:
        """alpha [B] alone, of logits that are held to the chunk's rows `at_B`."""
        at = _as_slice(at_B)
        q_BD, t_BD = self._q_BD[: len(at_B)], self._t_BD[: len(at_B)]
        torch.softmax(logits_BD, -1, out=q_BD)
        return self._overlap(q_BD, chunk.pt_RD[at], chunk.mass_R[at], t_BD)

    def look(
        self, logits_BD: Tensor, chunk: VerifierChunk, at_B: Tensor, *, overlap: bool
    ) -> RowStats:
        """Of logits held to the chunk's rows `at_B`.

        With `overlap` the logits become q [q < p] / m, from which `gradient` goes on.
        """
        at = _as_slice(at_B)
        pt_BD, q_BD, t_BD = chunk.pt_RD[at], self._q_BD[: len(at_B)], self._t_BD[: len(at_B)]
        torch.softmax(logits_BD, -1, out=q_BD)
        top_B, argmax_B = top_of_rows(logits_BD)
        # The largest of q is exp(0) / sum.
        logsum_B = top_B - q_BD.gather(1, argmax_B.unsqueeze(1)).squeeze(1).log_()
        score_B = torch.mul(pt_BD, logits_BD, out=t_BD).sum(-1)
        alpha_B = self._overlap(q_BD, pt_BD, chunk.mass_R[at], t_BD)
        if not overlap:
            return RowStats(argmax_B, logsum_B, score_B, alpha_B, torch.zeros_like(alpha_B))
        below_B = torch.lt(q_BD, pt_BD, out=logits_BD).mul_(q_BD).sum(-1).mul_(self._mass_B)
        return RowStats(argmax_B, logsum_B, score_B, alpha_B, below_B)

    def gradient(
        self,
        logits_BD: Tensor,
        chunk: VerifierChunk,
        at_B: Tensor,
        stats: RowStats,
        q_weight_B: Tensor,
        overlap_B: Tensor | None,
        pt_weight_B: Tensor | None,
    ) -> None:
        """Write q (q_weight - overlap [q < p]) - pt_weight p~ in place of the logits.

        The block is the one that was looked at last.
        """
        q_BD, q_weight_B1 = self._q_BD[: len(at_B)], (q_weight_B * self._mass_B).unsqueeze(1)
        if overlap_B is None:
            torch.mul(q_BD, q_weight_B1, out=logits_BD)
        else:
            logits_BD.mul_((overlap_B * self._mass_B).neg_().unsqueeze(1))
            logits_BD.addcmul_(q_BD, q_weight_B1)
        if pt_weight_B is not None:
            pt_BD = chunk.pt_RD[_as_slice(at_B)]
            logits_BD.addcmul_(pt_BD, pt_weight_B.unsqueeze(1), value=-1)

    def _overlap(self, q_BD: Tensor, pt_BD: Tensor, mass_B: Tensor, t_BD: Tensor) -> Tensor:
        """alpha [B]; q becomes q / m."""
        self._mass_B = mass_B.clamp(min=_LEAST_MASS)
        q_BD.mul_(self._mass_B.reciprocal().unsqueeze(1))
        return torch.minimum(q_BD, pt_BD, out=t_BD).sum(-1).mul_(self._mass_B)


def _as_slice(at_B: Tensor) -> Tensor | slice:
    """Rows that follow each other as a slice, which copies nothing."""
    first, last = int(at_B[0]), int(at_B[-1])
    return slice(first, last + 1) if last - first + 1 == len(at_B) else at_B
