"""One head's rows of a chunk: from logits to measures and, in place, to the loss's gradient.

Numbers of rows are worked with here; the passes over [rows, D] are those of `PlainRows`, block by
block, or `TritonRows`, and the matrix products around it (head_loss.py) work on whole chunks.
Per row, with p the verifier over the full vocabulary, m its mass on D, p~ = p / m, q = softmax(z)
the drafter, S' = sum of q where q < p:

    d kl = q - p~      d (1 - alpha) = q (S' - [q < p])      d lk = that over alpha
    d ce = q - onehot

so every weighted sum of losses has the gradient q (a - b [q < p]) - c p~ - e onehot, with numbers
a, b, c, e of the row.

Legend: B rows of a block, X some rows, R rows of a head in a chunk, D draft vocabulary, M measures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specpipe.stages.acceptance.loss.chunk import VerifierChunk
from specpipe.stages.acceptance.loss.plain_rows import GradientOf, PlainRows, RowGradient, RowStats
from specpipe.stages.acceptance.loss.settings import RowWeights

UNDERFLOW = 1e-25
"""Overlaps below are summed in log space: q may have lost terms of theirs to underflow."""

LogRows = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Some of the head's rows (int64 [X]) as log p and log q on D, [X, D], computed once more."""


class Passes(Protocol):
    """The passes over [R, D]; see `PlainRows`."""

    def alpha(self, logits_RD: Tensor, chunk: VerifierChunk, at_R: Tensor) -> Tensor: ...

    def walk(
        self,
        logits_RD: Tensor,
        chunk: VerifierChunk,
        at_R: Tensor,
        gradient_of: GradientOf | None,
    ) -> RowStats: ...


class RowPass:
    """Walks rows of logits, with the fused passes where logits are float32 on a CUDA device."""

    def __init__(self, chunk_rows: int, target_ids_D: Tensor, like: Tensor) -> None:
        self._target_ids_D = target_ids_D
        self.passes: Passes = PlainRows(chunk_rows, len(target_ids_D), like)
        if like.is_cuda and like.dtype == torch.float32:
            from specpipe.stages.acceptance.loss.triton_rows import TritonRows

            self.passes = TritonRows()

    def alpha(self, logits_RD: Tensor, chunk: VerifierChunk, at_R: Tensor) -> Tensor:
        """alpha [R] of rows of logits that are held to the chunk's rows `at_R`."""
        return self.passes.alpha(logits_RD, chunk, at_R)

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
        gradient_of = None if weights is None else _Gradient(weights, known_R, inside_R)
        stats = self.passes.walk(logits_RD, chunk, at_R, gradient_of)
        alpha_R, logq_token_R = stats.alpha_R, token_logit_R - stats.logsum_R
        kl_R = stats.logsum_R - stats.score_R - chunk.entropy_R[at_R]
        lost_X = torch.nonzero(known_R & (alpha_R < UNDERFLOW)).squeeze(1)
        lost = _LogSpace(*log_rows(lost_X)) if len(lost_X) else None
        lk_R = -torch.log(alpha_R)
        if lost is not None:
            lk_R[lost_X] = lost.lk_X
        ratio_R = torch.exp((logq_token_R - chunk.token_logprob_R[at_R]).clamp(max=0.0))
        drafted_R = self._target_ids_D[stats.argmax_R]
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


@dataclass(frozen=True, slots=True)
class _Gradient:
    """The gradient of a head's rows, but for what single columns get (`ce`) and rows that are
    taken in log space."""

    weights: RowWeights
    known_R: Tensor
    inside_R: Tensor

    def __call__(self, rows: slice, alpha_B: Tensor) -> RowGradient:
        weights = self.weights
        kl_weight_B, overlap_B = weights.kl_and_tv(alpha_B)
        if weights.lk:
            in_log_space_B = alpha_B < UNDERFLOW
            overlap_B = overlap_B + torch.where(in_log_space_B, 0.0, weights.lk / alpha_B)
        return RowGradient(
            kl_weight_B * self.known_R[rows] + weights.ce * self.inside_R[rows],
            overlap_B if weights.move_overlap else None,
            kl_weight_B if weights.move_kl else None,
        )


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
