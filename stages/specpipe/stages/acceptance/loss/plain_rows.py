"""The passes over [rows, D] that the loss takes, by torch operators on reused memory.

Legend: B rows of a block, R rows of a head in a chunk, D draft vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.stages.acceptance.loss.chunk import VerifierChunk
from specpipe.stages.acceptance.loss.row_block import block_rows, top_of_rows


@dataclass(frozen=True, slots=True)
class RowStats:
    """Statistics of rows of logits z, with q = softmax(z)."""

    argmax_R: Tensor
    """int64: the draft token that q makes likeliest."""
    logsum_R: Tensor
    """Log-sum-exp of z: log q = z - logsum."""
    score_R: Tensor
    """Sum of p~ z."""
    alpha_R: Tensor
    """Sum of min(p, q)."""


@dataclass(frozen=True, slots=True)
class RowGradient:
    """Numbers of each row of the gradient q (q_weight + overlap (S' - [q < p])) - pt_weight p~,
    with S' the sum of q where q < p."""

    q_weight_B: Tensor
    overlap_B: Tensor | None
    pt_weight_B: Tensor | None


GradientOf = Callable[[slice, Tensor], RowGradient]
"""The gradient of some of the head's rows, of their alpha [B]."""

_LEAST_MASS = 1e-26
"""Mass that q is divided by; the overlap of a row with less is taken in log space (row_pass.py)."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of a head; to be asked in this order: `of_logits`, `alpha`, `logits_to_gradient`."""

    rows: slice
    z_BD: Tensor
    pt_BD: Tensor
    mass_B: Tensor
    q_BD: Tensor
    t_BD: Tensor
    """Memory."""

    def of_logits(self) -> tuple[Tensor, Tensor, Tensor]:
        """Argmax, log-sum-exp, and the sum of p~ z."""
        top_B, argmax_B = top_of_rows(self.z_BD)
        # The largest of q is exp(0) / sum.
        largest_B = self.q_BD.gather(1, argmax_B.unsqueeze(1)).squeeze(1)
        score_B = torch.mul(self.pt_BD, self.z_BD, out=self.t_BD).sum(-1)
        return argmax_B, top_B - largest_B.log_(), score_B

    def alpha(self) -> Tensor:
        """From here on q is q / m, which is held to p~ as q is to p: no pass makes p."""
        self.q_BD.mul_(self.mass_B.reciprocal().unsqueeze(1))
        overlap_BD = torch.minimum(self.q_BD, self.pt_BD, out=self.t_BD)
        return overlap_BD.sum(-1).mul_(self.mass_B)

    def logits_to_gradient(self, gradient: RowGradient) -> None:
        z_BD, r_BD, q_weight_B = self.z_BD, self.q_BD, gradient.q_weight_B
        if gradient.overlap_B is None:
            torch.mul(r_BD, (q_weight_B * self.mass_B).unsqueeze(1), out=z_BD)
        else:
            overlap_B = gradient.overlap_B * self.mass_B
            below_B = torch.lt(r_BD, self.pt_BD, out=z_BD).mul_(r_BD).sum(-1)
            r_weight_B = torch.addcmul(q_weight_B, overlap_B, below_B).mul_(self.mass_B)
            z_BD.mul_(overlap_B.neg().unsqueeze(1)).addcmul_(r_BD, r_weight_B.unsqueeze(1))
        if gradient.pt_weight_B is not None:
            z_BD.addcmul_(self.pt_BD, gradient.pt_weight_B.unsqueeze(1), value=-1)


class PlainRows:
    """Walks rows block by block: first statistics, then the gradient in place of the logits."""

    def __init__(self, chunk_rows: int, size: int, like: Tensor) -> None:
        self._most_rows = min(chunk_rows, block_rows(size, like.device))
        self._q_BD, self._t_BD = (like.new_empty(self._most_rows, size) for _ in range(2))

    def alpha(self, logits_RD: Tensor, chunk: VerifierChunk, at_R: Tensor) -> Tensor:
        """alpha [R] alone, of logits that are held to the chunk's rows `at_R`."""
        return torch.cat([block.alpha() for block in self._blocks(logits_RD, chunk, at_R)])

    def walk(
        self,
        logits_RD: Tensor,
        chunk: VerifierChunk,
        at_R: Tensor,
        gradient_of: GradientOf | None,
    ) -> RowStats:
        """Of logits that are held to the chunk's rows `at_R`.

        With `gradient_of` they become the gradient.
        """
        found = []
        for block in self._blocks(logits_RD, chunk, at_R):
            of_logits, alpha_B = block.of_logits(), block.alpha()
            found.append((*of_logits, alpha_B))
            if gradient_of is not None:
                block.logits_to_gradient(gradient_of(block.rows, alpha_B))
        return RowStats(*map(torch.cat, zip(*found, strict=True)))

    def _blocks(self, logits_RD: Tensor, chunk: VerifierChunk, at_R: Tensor) -> Iterator[_Block]:
        at, step = at_R.tolist(), self._most_rows
        mass_R = chunk.mass_R[at_R].clamp(min=_LEAST_MASS)
        for begin in range(0, len(at), step):
            rows = slice(begin, min(begin + step, len(at)))
            first, last, num_rows = at[rows.start], at[rows.stop - 1], rows.stop - rows.start
            # Rows that follow each other as a slice, which copies nothing.
            of_chunk = slice(first, last + 1) if last - first < num_rows else at_R[rows]
            z_BD = logits_RD[rows]
            q_BD = torch.softmax(z_BD, -1, out=self._q_BD[:num_rows])
            yield _Block(
                rows, z_BD, chunk.pt_RD[of_chunk], mass_R[rows], q_BD, self._t_BD[:num_rows]
            )
