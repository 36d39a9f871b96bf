"""One head's rows of a chunk: from logits to measures and, in place, to the loss's gradient.

Everything that is elementwise on [rows, D] happens here, block by block; the matrix products
around it (loss.py) work on whole chunks. Per row, with p the verifier over the full vocabulary,
m its mass on D, p~ = p / m, q = softmax(z) the drafter, S' = sum of q where q < p:

    d kl = q - p~      d (1 - alpha) = q (S' - [q < p])      d lk = that over alpha
    d ce = q - onehot

so every weighted sum of losses has the gradient q (a - b [q < p]) - c p~ - e onehot, with numbers
a, b, c, e of the row.

Legend: B rows of a block, X some of them, R rows of a chunk, D draft vocabulary, M measures.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from specpipe.stages.drafter.loss_chunk import VerifierChunk
from specpipe.stages.drafter.loss_settings import RowWeights
from specpipe.stages.drafter.measures import NUM_MEASURES
from specpipe.stages.drafter.row_block import argmax_of_rows, block_rows

UNDERFLOW = 1e-25
"""Overlaps below are summed in log space: q may have lost terms of theirs to underflow."""

LogRows = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Some of the head's rows (int64 [X]) as log p and log q on D, [X, D], computed once more."""


class RowPass:
    """Walks rows of logits; its two blocks of memory are reused."""

    def __init__(self, chunk_rows: int, target_ids_D: Tensor, like: Tensor) -> None:
        size = len(target_ids_D)
        self._target_ids_D = target_ids_D
        self._rows = min(chunk_rows, block_rows(size, like.device))
        self._q_BD, self._t_BD = (like.new_empty(self._rows, size) for _ in range(2))

    def alpha(self, logits_RD: Tensor, chunk: VerifierChunk, at_R: Tensor) -> Tensor:
        """alpha [R] of rows of logits that are held to the chunk's rows `at_R`."""
        alpha_R = logits_RD.new_empty(len(logits_RD))
        for begin in range(0, len(logits_RD), self._rows):
            rows = slice(begin, begin + self._rows)
            at = _as_slice(at_R[rows])
            q_BD, overlap_BD = self._q_BD[: len(at_R[rows])], self._t_BD[: len(at_R[rows])]
            torch.softmax(logits_RD[rows], -1, out=q_BD)
            torch.mul(chunk.pt_RD[at], chunk.mass_R[at].unsqueeze(1), out=overlap_BD)
            torch.minimum(overlap_BD, q_BD, out=overlap_BD)
            alpha_R[rows] = overlap_BD.sum(-1)
        return alpha_R

    def __call__(
        self,
        logits_RD: Tensor,
        chunk: VerifierChunk,
        at_R: Tensor,
        weights: RowWeights | None,
        log_rows: LogRows,
    ) -> tuple[Tensor, Tensor]:
        """The measures [M, R] and each row's loss [R]; `logits_RD` becomes the loss's gradient.

        `weights` None measures only: the losses are 0, and the logits are left as they are.
        """
        measures_MR = logits_RD.new_empty(NUM_MEASURES, len(logits_RD))
        loss_R = logits_RD.new_zeros(len(logits_RD))
        for begin in range(0, len(logits_RD), self._rows):
            rows = slice(begin, begin + self._rows)
            measures_MR[:, rows], loss_R[rows] = self._block(
                logits_RD[rows], chunk, at_R[rows], weights, lambda x, b=begin: log_rows(x + b)
            )
        return measures_MR, loss_R

    def _block(
        self,
        logits_BD: Tensor,
        chunk: VerifierChunk,
        at_B: Tensor,
        weights: RowWeights | None,
        log_rows: LogRows,
    ) -> tuple[Tensor, Tensor]:
        at = _as_slice(at_B)
        pt_BD, mass_B, known_B = chunk.pt_RD[at], chunk.mass_R[at], chunk.known_R[at]
        q_BD, t_BD = self._q_BD[: len(at_B)], self._t_BD[: len(at_B)]
        torch.softmax(logits_BD, -1, out=q_BD)
        drafted_B = argmax_of_rows(logits_BD)
        # The largest of q is exp(0) / sum.
        logsum_B = _pick(logits_BD, drafted_B) - _pick(q_BD, drafted_B).log()
        token_draft_B = chunk.token_draft_R[at]
        inside_B = token_draft_B >= 0
        logq_token_B = _pick(logits_BD, token_draft_B.clamp(min=0)) - logsum_B
        cross_B = logsum_B - torch.linalg.vecdot(pt_BD, logits_BD)
        kl_B = torch.where(known_B, cross_B - chunk.entropy_R[at], 0.0)
        torch.mul(pt_BD, mass_B.unsqueeze(1), out=t_BD)
        if weights is not None and weights.move_overlap:
            torch.lt(q_BD, t_BD, out=logits_BD)
        alpha_B = torch.minimum(t_BD, q_BD, out=t_BD).sum(-1)
        lk_B = -torch.log(alpha_B)
        lost_X = torch.nonzero(known_B & (alpha_B < UNDERFLOW)).squeeze(1)
        lost = _LogSpace(*log_rows(lost_X)) if len(lost_X) else None
        if lost is not None:
            lk_B[lost_X] = lost.lk_X
        lk_B = torch.where(known_B, lk_B, 0.0)
        ratio_B = torch.exp((logq_token_B - chunk.token_logprob_R[at]).clamp(max=0.0))
        drafted_B = self._target_ids_D[drafted_B]
        measures_MB = torch.stack(
            [
                alpha_B,
                lk_B,
                kl_B,
                torch.where(inside_B, -logq_token_B, 0.0),
                inside_B.to(q_BD.dtype),
                mass_B,
                torch.where(inside_B, ratio_B, 0.0),
                (drafted_B == chunk.argmax_R[at]).to(q_BD.dtype),
                (drafted_B == chunk.token_R[at]).to(q_BD.dtype),
            ]
        )
        if weights is None:
            return measures_MB, torch.zeros_like(alpha_B)
        kl_weight_B, tv_weight_B = weights.kl_and_tv(alpha_B)
        loss_B = kl_weight_B * kl_B + tv_weight_B * (1 - alpha_B)
        loss_B = loss_B + weights.lk * lk_B + weights.ce * measures_MB[3]
        # From here on `logits_BD` is the gradient; it begins as [q < p].
        ce_B = weights.ce * inside_B
        factor_B = kl_weight_B * known_B + ce_B
        if weights.move_overlap:
            overlap_B = tv_weight_B
            if weights.lk:
                by_alpha_B = torch.where(alpha_B < UNDERFLOW, 0.0, weights.lk / alpha_B)
                overlap_B = overlap_B + by_alpha_B
            below_B = torch.linalg.vecdot(logits_BD, q_BD)
            factor_B = factor_B + overlap_B * below_B
            logits_BD.mul_(-overlap_B.unsqueeze(1)).add_(factor_B.unsqueeze(1)).mul_(q_BD)
        else:
            torch.mul(q_BD, factor_B.unsqueeze(1), out=logits_BD)
        if weights.move_kl:
            logits_BD.addcmul_(pt_BD, kl_weight_B.unsqueeze(1), value=-1)
        ce_B = ce_B.to(logits_BD.dtype)
        logits_BD.scatter_add_(1, token_draft_B.clamp(min=0).unsqueeze(1), -ce_B.unsqueeze(1))
        if lost is not None and weights.lk:
            logits_BD[lost_X] += weights.lk * lost.gradient()
        return measures_MB, loss_B


class _LogSpace:
    """-log alpha of rows whose overlap underflows: alpha may be 0, the quotients are not."""

    def __init__(self, logp_XD: Tensor, logq_XD: Tensor) -> None:
        self._logp_XD, self._logq_XD = logp_XD, logq_XD
        self.lk_X = -torch.logsumexp(torch.minimum(logp_XD, logq_XD), dim=-1)

    def gradient(self) -> Tensor:
        """Of -log alpha with respect to the drafter's logits, [X, D]."""
        below_XD = self._logq_XD < self._logp_XD
        scaled_XD = torch.where(below_XD, self._logq_XD + self.lk_X.unsqueeze(1), -torch.inf)
        scaled_XD = scaled_XD.exp()
        return torch.exp(self._logq_XD) * scaled_XD.sum(-1, keepdim=True) - scaled_XD


def _pick(values_BD: Tensor, column_B: Tensor) -> Tensor:
    return values_BD.gather(1, column_B.unsqueeze(1)).squeeze(1)


def _as_slice(at_B: Tensor) -> Tensor | slice:
    """Rows that follow each other as a slice, which copies nothing."""
    first, last = int(at_B[0]), int(at_B[-1])
    return slice(first, last + 1) if last - first + 1 == len(at_B) else at_B
