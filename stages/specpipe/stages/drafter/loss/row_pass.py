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
from typing import Protocol

import torch
from torch import Tensor

from specpipe.stages.drafter.loss.chunk import VerifierChunk
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
        known_R, token_draft_R = chunk.known_R[at_R], chunk.token_draft_R[at_R]
        inside_R = token_draft_R >= 0
        token_R1 = token_draft_R.clamp(min=0).unsqueeze(1)
        token_logit_R = logits_RD.gather(1, token_R1).squeeze(1)
        stats = self._walk(logits_RD, chunk, at_R, weights, known_R, inside_R)
        alpha_R, logq_token_R = stats.alpha_B, token_logit_R - stats.logsum_B
        kl_R = stats.logsum_B - stats.score_B - chunk.entropy_R[at_R]
        lost_X = torch.nonzero(known_R & (alpha_R < UNDERFLOW)).squeeze(1)
        lost = _LogSpace(*log_rows(lost_X)) if len(lost_X) else None
        lk_R = -torch.log(alpha_R)
        if lost is not None:
            lk_R[lost_X] = lost.lk_X
        ratio_R = torch.exp((logq_token_R - chunk.token_logprob_R[at_R]).clamp(max=0.0))
        drafted_R = self._target_ids_D[stats.argmax_B]
        measures_MR = torch.stack(
            [
                alpha_R,
                torch.where(known_R, lk_R, 0.0),
                torch.where(known_R, kl_R, 0.0),
                torch.where(inside_R, -logq_token_R, 0.0),
                inside_R.to(alpha_R.dtype),
                chunk.mass_R[at_R],
                torch.where(inside_R, ratio_R, 0.0),
                (drafted_R == chunk.argmax_R[at_R]).to(alpha_R.dtype),
                (drafted_R == chunk.token_R[at_R]).to(alpha_R.dtype),
            ]
        )
        if weights is None:
            return measures_MR, torch.zeros_like(alpha_R)
        ce_weight_R = weights.ce * inside_R
        logits_RD.scatter_add_(1, token_R1, -ce_weight_R.unsqueeze(1).to(logits_RD.dtype))
        if lost is not None and weights.lk:
            logits_RD[lost_X] += weights.lk * lost.gradient()
        kl_weight_R, tv_weight_R = weights.kl_and_tv(alpha_R)
        _, lk_R, kl_R, ce_R, *_ = measures_MR
        loss_R = kl_weight_R * kl_R + tv_weight_R * (1 - alpha_R)
        return measures_MR, loss_R + weights.lk * lk_R + ce_weight_R * ce_R

    def _walk(
        self,
        logits_RD: Tensor,
        chunk: VerifierChunk,
        at_R: Tensor,
        weights: RowWeights | None,
        known_R: Tensor,
        inside_R: Tensor,
    ) -> RowStats:
        """What the rows say; with `weights` all of the gradient but what few columns get."""
        found = []
        step = self.passes.most_rows
        for begin in range(0, len(logits_RD), step):
            rows = slice(begin, begin + step)
            logits_BD, at_B = logits_RD[rows], at_R[rows]
            overlap = weights is not None and weights.move_overlap
            stats = self.passes.look(logits_BD, chunk, at_B, overlap=overlap)
            found.append(stats)
            if weights is None:
                continue
            kl_weight_B, overlap_B = weights.kl_and_tv(stats.alpha_B)
            if weights.lk:
                # Of the rows in log space the gradient is added later.
                small_B = stats.alpha_B < UNDERFLOW
                overlap_B = overlap_B + torch.where(small_B, 0.0, weights.lk / stats.alpha_B)
            q_weight_B = kl_weight_B * known_R[rows] + weights.ce * inside_R[rows]
            self.passes.gradient(
                logits_BD,
                chunk,
                at_B,
                stats,
                q_weight_B=q_weight_B.addcmul_(overlap_B, stats.below_B),
                overlap_B=overlap_B if overlap else None,
                pt_weight_B=kl_weight_B if weights.move_kl else None,
            )
        return RowStats.cat(found)


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
