"""The passes over [rows, D] that the loss takes, by torch operators on reused memory.

Legend: B rows of a block, R rows of a chunk, D draft vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.stages.drafter.loss.chunk import VerifierChunk
from specpipe.stages.drafter.loss.row_block import argmax_of_rows, block_rows


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


class PlainRows:
    """A block of rows is looked at, and then its logits become their gradient."""

    def __init__(self, chunk_rows: int, size: int, like: Tensor) -> None:
        self.most_rows = min(chunk_rows, block_rows(size, like.device))
        self._q_BD, self._t_BD = (like.new_empty(self.most_rows, size) for _ in range(2))

    def alpha(self, logits_BD: Tensor, chunk: VerifierChunk, at_B: Tensor) -> Tensor:
        """alpha [B] alone, of logits that are held to the chunk's rows `at_B`."""
        at = _as_slice(at_B)
        self._softmax_and_p(logits_BD, chunk.pt_RD[at], chunk.mass_R[at])
        q_BD, t_BD = self._q_BD[: len(at_B)], self._t_BD[: len(at_B)]
        return torch.minimum(t_BD, q_BD, out=t_BD).sum(-1)

    def look(
        self, logits_BD: Tensor, chunk: VerifierChunk, at_B: Tensor, *, overlap: bool
    ) -> RowStats:
        """Of logits held to the chunk's rows `at_B`.

        With `overlap` the logits become [q < p], from which `gradient` goes on.
        """
        at = _as_slice(at_B)
        pt_BD, q_BD, t_BD = chunk.pt_RD[at], self._q_BD[: len(at_B)], self._t_BD[: len(at_B)]
        self._softmax_and_p(logits_BD, pt_BD, chunk.mass_R[at])
        argmax_B = argmax_of_rows(logits_BD)
        # The largest of q is exp(0) / sum.
        top_B1 = argmax_B.unsqueeze(1)
        logsum_B = (logits_BD.gather(1, top_B1) - q_BD.gather(1, top_B1).log()).squeeze(1)
        score_B = torch.linalg.vecdot(pt_BD, logits_BD)
        if overlap:
            torch.lt(q_BD, t_BD, out=logits_BD)
        alpha_B = torch.minimum(t_BD, q_BD, out=t_BD).sum(-1)
        below_B = torch.linalg.vecdot(logits_BD, q_BD) if overlap else torch.zeros_like(alpha_B)
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
        q_BD = self._q_BD[: len(at_B)]
        if overlap_B is None:
            torch.mul(q_BD, q_weight_B.unsqueeze(1), out=logits_BD)
        else:
            logits_BD.mul_(-overlap_B.unsqueeze(1)).add_(q_weight_B.unsqueeze(1)).mul_(q_BD)
        if pt_weight_B is not None:
            pt_BD = chunk.pt_RD[_as_slice(at_B)]
            logits_BD.addcmul_(pt_BD, pt_weight_B.unsqueeze(1), value=-1)

    def _softmax_and_p(self, logits_BD: Tensor, pt_BD: Tensor, mass_B: Tensor) -> None:
        num_rows = len(logits_BD)
        torch.softmax(logits_BD, -1, out=self._q_BD[:num_rows])
        torch.mul(pt_BD, mass_B.unsqueeze(1), out=self._t_BD[:num_rows])


def _as_slice(at_B: Tensor) -> Tensor | slice:
    """Rows that follow each other as a slice, which copies nothing."""
    first, last = int(at_B[0]), int(at_B[-1])
    return slice(first, last + 1) if last - first + 1 == len(at_B) else at_B
