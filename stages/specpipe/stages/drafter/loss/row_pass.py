"""One head's rows of a chunk: from logits to measures and, in place, to the loss's gradient.

Numbers of rows are worked with here, block by block; the passes over [rows, D] are those of
`PlainRows` or `TritonRows`, and the matrix products around it (heads.py) work on whole chunks.
Per row, with p the verifier over the full vocabulary, m its mass on D, p~ = p / m, q = softmax(z)
the drafter, S' = sum of q where q < p:

    d kl = q - p~      d (1 - alpha) = q (S' - [q < p])      d lk = that over alpha
    d ce = q - onehot

so every weighted sum of losses has the gradient q (a - b [q < p]) - c p~ - e onehot, with numbers
a, b, c, e of the row.

Legend: B rows of a block, X some of them, R rows of a chunk, D draft vocabulary, M measures.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from specpipe.stages.drafter.loss.chunk import VerifierChunk
from specpipe.stages.drafter.loss.measures import NUM_MEASURES
from specpipe.stages.drafter.loss.plain_rows import PlainRows, RowStats
from specpipe.stages.drafter.loss.settings import RowWeights

UNDERFLOW = 1e-25
"""Overlaps below are summed in log space: q may have lost terms of theirs to underflow."""

LogRows = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Some of the head's rows (int64 [X]) as log p and log q on D, [X, D], computed once more."""


class Passes(Protocol):
    """The passes over [B, D]; see `PlainRows`."""

    most_rows: int

    def alpha(self, logits_BD: Tensor, chunk: VerifierChunk, at_B: Tensor) -> Tensor: ...

    def look(
        self, logits_BD: Tensor, chunk: VerifierChunk, at_B: Tensor, *, overlap: bool
    ) -> RowStats: ...

    def gradient(
        self,
        logits_BD: Tensor,
        chunk: VerifierChunk,
        at_B: Tensor,
        stats: RowStats,
        q_weight_B: Tensor,
        overlap_B: Tensor | None,
        pt_weight_B: Tensor | None,
    ) -> None: ...


class RowPass:
    """Walks rows of logits, with the fused passes where logits are float32 on a CUDA device."""

    def __init__(self, chunk_rows: int, target_ids_D: Tensor, like: Tensor) -> None:
        self._target_ids_D = target_ids_D
        self.passes: Passes = PlainRows(chunk_rows, len(target_ids_D), like)
        if like.is_cuda and like.dtype == torch.float32:
            from specpipe.stages.drafter.loss.triton_rows import TritonRows

            self.passes = TritonRows(chunk_rows)

    def alpha(self, logits_RD: Tensor, chunk: VerifierChunk, at_R: Tensor) -> Tensor:
        """alpha [R] of rows of logits that are held to the chunk's rows `at_R`."""
        step = self.passes.most_rows
        blocks = zip(logits_RD.split(step), at_R.split(step), strict=True)
        return torch.cat([self.passes.alpha(logits, chunk, at) for logits, at in blocks])

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
        step = self.passes.most_rows
        for begin in range(0, len(logits_RD), step):
            rows = slice(begin, begin + step)
            measures_MR[:, rows], loss_R[rows] = self._block(
                logits_RD[rows], chunk, at_R[rows], weights, partial(_shifted, log_rows, begin)
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
        known_B, token_draft_B = chunk.known_R[at_B], chunk.token_draft_R[at_B]
        inside_B = token_draft_B >= 0
        token_B1 = token_draft_B.clamp(min=0).unsqueeze(1)
        token_logit_B = logits_BD.gather(1, token_B1).squeeze(1)
        overlap = weights is not None and weights.move_overlap
        stats = self.passes.look(logits_BD, chunk, at_B, overlap=overlap)
        alpha_B, logq_token_B = stats.alpha_B, token_logit_B - stats.logsum_B
        kl_B = stats.logsum_B - stats.score_B - chunk.entropy_R[at_B]
        lost_X = torch.nonzero(known_B & (alpha_B < UNDERFLOW)).squeeze(1)
        lost = _LogSpace(*log_rows(lost_X)) if len(lost_X) else None
        lk_B = -torch.log(alpha_B)
        if lost is not None:
            lk_B[lost_X] = lost.lk_X
        ratio_B = torch.exp((logq_token_B - chunk.token_logprob_R[at_B]).clamp(max=0.0))
        drafted_B = self._target_ids_D[stats.argmax_B]
        measures_MB = torch.stack(
            [
                alpha_B,
                torch.where(known_B, lk_B, 0.0),
                torch.where(known_B, kl_B, 0.0),
                torch.where(inside_B, -logq_token_B, 0.0),
                inside_B.to(alpha_B.dtype),
                chunk.mass_R[at_B],
                torch.where(inside_B, ratio_B, 0.0),
                (drafted_B == chunk.argmax_R[at_B]).to(alpha_B.dtype),
                (drafted_B == chunk.token_R[at_B]).to(alpha_B.dtype),
            ]
        )
        if weights is None:
            return measures_MB, torch.zeros_like(alpha_B)
        kl_weight_B, tv_weight_B = weights.kl_and_tv(alpha_B)
        ce_weight_B = weights.ce * inside_B
        _, lk_B, kl_B, ce_B, *_ = measures_MB
        loss_B = kl_weight_B * kl_B + tv_weight_B * (1 - alpha_B)
        loss_B = loss_B + weights.lk * lk_B + ce_weight_B * ce_B
        overlap_B = tv_weight_B
        if weights.lk:
            # Of the rows in log space the gradient is added below.
            overlap_B = overlap_B + torch.where(alpha_B < UNDERFLOW, 0.0, weights.lk / alpha_B)
        self.passes.gradient(
            logits_BD,
            chunk,
            at_B,
            stats,
            q_weight_B=kl_weight_B * known_B + ce_weight_B + overlap_B * stats.below_B,
            overlap_B=overlap_B if overlap else None,
            pt_weight_B=kl_weight_B if weights.move_kl else None,
        )
        logits_BD.scatter_add_(1, token_B1, -ce_weight_B.unsqueeze(1).to(logits_BD.dtype))
        if lost is not None and weights.lk:
            logits_BD[lost_X] += weights.lk * lost.gradient()
        return measures_MB, loss_B


def _shifted(log_rows: LogRows, begin: int, row_X: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the block that begins at the head's row `begin`."""
    return log_rows(begin + row_X)


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
