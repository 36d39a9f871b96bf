"""Losses and measures of all heads, walked in chunks of verifier rows.

No tensor of [tokens, vocabulary] is ever alive: for each chunk of rows the verifier's
distribution is computed once for all heads (head k at start i and head k-1 at start i+1 share a
target), then each head's logits, its loss, and its gradient at once, and the chunk is let go.
Memory is two tensors of [chunk, D].

Definitions (arXiv 2602.23881, sections 3-4), per row, with p the verifier over the full
vocabulary, q the drafter over D, p~ = p renormalised on D:
    alpha = sum over D of min(p, q)
    kl = KL(p~ || q), tv = 1 - alpha, lk_alpha = -log alpha
    lk_hybrid = lambda kl + (1 - lambda)(1 - alpha),    lambda = exp(-eta * mean alpha of the head)
    ce = -log q(token), over the rows whose token is in D

Legend: R rows of a head in a chunk, N starts, K heads, D draft vocabulary, W width of a block of a
head's matrix, X width of all its blocks, M measures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specpipe.stages.acceptance.loss.chunk import VerifierChunk, verifier_chunks
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.heads import Heads, logits_of, product, split
from specpipe.stages.acceptance.loss.measures import NUM_MEASURES, sum_over_starts
from specpipe.stages.acceptance.loss.row_pass import LogRows, RowPass
from specpipe.stages.acceptance.loss.settings import LossSettings, RowWeights
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.samples.batch import Batch


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """Computes losses and measures of a drafter's heads against the verifier."""

    verifier: Verifier
    chunk_rows: int
    """Verifier rows that are walked at a time."""

    def __call__(
        self,
        hidden_KNX: Tensor,
        heads: Heads,
        batch: Batch,
        settings: LossSettings,
        denominators: Denominators | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The weighted loss (a scalar; differentiable), and the measures [M, K, N] (detached).

        Each head's loss is a sum over its valid starts, weighted by multiplicity, over
        `denominators`: those of the global batch of which this is a part; None: of this batch
        alone. Measures of starts that a head does not use are 0. Gradients are made only of what
        requires grad, hidden states and blocks of the heads.
        """
        if denominators is None:
            denominators = Denominators.of(batch, self.verifier.draft_ids_V)
        walk = _Walk(self, hidden_KNX, heads, batch)
        loss, measures_MKN = _Differentiable.apply(  # type: ignore[no-untyped-call]
            walk, settings, denominators, hidden_KNX, *heads.blocks
        )
        return loss, measures_MKN

    @torch.no_grad()
    def measures(self, hidden_KNX: Tensor, heads: Heads, batch: Batch) -> Tensor:
        """The measures [M, K, N] alone."""
        walk = _Walk(self, hidden_KNX, heads, batch)
        measures_MKN = hidden_KNX.new_zeros(NUM_MEASURES, *batch.rows_KN.shape)

        def measure(rows: _Rows) -> None:
            measures_MKN[:, rows.k, rows.starts], _ = walk.measured(rows, None)

        walk.each(measure)
        return measures_MKN

    @torch.no_grad()
    def alpha_sums(self, hidden_KNX: Tensor, heads: Heads, batch: Batch) -> Tensor:
        """Numerators of each head's mean alpha, float64 [K], by a pass for them alone.

        Summed over micro-batches and ranks, over `Denominators.starts_K`, they are what lk_hybrid's
        lambda asks for before the first gradient.
        """
        walk = _Walk(self, hidden_KNX, heads, batch)
        alpha_KN = hidden_KNX.new_zeros(batch.rows_KN.shape)

        def measure(rows: _Rows) -> None:
            alpha_KN[rows.k, rows.starts] = walk.row_pass.alpha(
                rows.logits_RD, rows.chunk, rows.at_R
            )

        walk.each(measure)
        return sum_over_starts(alpha_KN, batch)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one head in a chunk."""

    k: int
    starts: Tensor
    chunk: VerifierChunk
    at_R: Tensor
    """The rows' indices in the chunk."""
    hidden_RX: Tensor
    logits_RD: Tensor
    """Memory that the next rows are written to."""


class _Walk:
    """A walk over a batch's rows: head by head of one chunk after the other."""

    def __init__(self, of: HeadLoss, hidden_KNX: Tensor, heads: Heads, batch: Batch) -> None:
        self.heads = heads
        self.batch = batch
        self.ready = heads.ready_for(hidden_KNX)
        self.row_pass = RowPass(of.chunk_rows, of.verifier.target_ids_D, hidden_KNX)
        self._of = of
        self._hidden_KNX = hidden_KNX

    def each(self, visit: Callable[[_Rows], None]) -> None:
        """Visit all rows, and keep none, so that one chunk is alive at a time."""
        batch, hidden_KNX, chunk_rows = self.batch, self._hidden_KNX, self._of.chunk_rows
        num_rows = min(chunk_rows, len(batch.next_token_S))
        buffer_RD = hidden_KNX.new_empty(num_rows, self.ready.vocab_size)
        for chunk in verifier_chunks(batch, self._of.verifier, chunk_rows, hidden_KNX.dtype):
            for k in range(batch.num_heads):
                starts, at_R = chunk.of_head(k)
                if len(starts):
                    hidden_RX, logits_RD = hidden_KNX[k, starts], buffer_RD[: len(starts)]
                    logits_of(hidden_RX, self.ready.of(k), logits_RD)
                    visit(_Rows(k, starts, chunk, at_R, hidden_RX, logits_RD))
            # Before the next chunk's logits are asked for, this one's must be gone.
            del chunk

    def measured(self, rows: _Rows, weights: RowWeights | None) -> tuple[Tensor, Tensor]:
        """The measures [M, R] and each row's loss [R]; see `RowPass`."""
        return self.row_pass(rows.logits_RD, rows.chunk, rows.at_R, weights, self._log_rows(rows))

    def _log_rows(self, rows: _Rows) -> LogRows:
        """Some of the rows as log p and log q, for the few that need them exactly."""

        def log_rows(row_Y: Tensor) -> tuple[Tensor, Tensor]:
            logp_YD = self._of.verifier.logp(self.batch, rows.chunk.begin + rows.at_R[row_Y])
            logits_YD = logits_of(rows.hidden_RX[row_Y], self.ready.of(rows.k))
            logq_YD = torch.log_softmax(logits_YD, dim=-1)
            return logp_YD.to(logq_YD.dtype), logq_YD

        return log_rows


class _Gradients:
    """Sums of the gradients that are wanted."""

    def __init__(self, walk: _Walk, hidden_KNX: Tensor, wanted: Sequence[bool]) -> None:
        self._walk = walk
        self.dhidden_KNX = torch.zeros_like(hidden_KNX) if wanted[0] else None
        self.dblocks = [
            torch.zeros_like(block, dtype=hidden_KNX.dtype) if is_wanted else None
            for block, is_wanted in zip(walk.heads.blocks, wanted[1:], strict=True)
        ]
        self._of_block = {
            id(block): dblock for block, dblock in zip(walk.heads.blocks, self.dblocks, strict=True)
        }

    def add(self, rows: _Rows, share_R: Tensor) -> None:
        """Of rows whose logits have become the gradient of their losses, which weigh `share_R`."""
        share_R1, ready = share_R.unsqueeze(1), self._walk.ready.of(rows.k)
        begin = 0
        for block, ready_DW, hidden_RW in zip(
            self._walk.heads.of(rows.k), ready, split(rows.hidden_RX, ready), strict=True
        ):
            end = begin + hidden_RW.shape[1]
            if self.dhidden_KNX is not None:
                dhidden_RW = product(rows.logits_RD, ready_DW).mul_(share_R1)
                self.dhidden_KNX[rows.k, rows.starts, begin:end] = dhidden_RW
            if (dblock_DW := self._of_block[id(block)]) is not None:
                dblock_DW.addmm_(rows.logits_RD.T, hidden_RW * share_R1)
            begin = end


class _Differentiable(torch.autograd.Function):
    """The loss as an autograd function: gradients are computed in forward, chunk by chunk, and
    backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        walk: _Walk,
        settings: LossSettings,
        denominators: Denominators,
        hidden_KNX: Tensor,
        *_: Tensor,
    ) -> tuple[Tensor, Tensor]:
        batch = walk.batch
        measures_MKN = hidden_KNX.new_zeros(NUM_MEASURES, *batch.rows_KN.shape)
        loss = hidden_KNX.new_zeros(())
        gradients = _Gradients(walk, hidden_KNX, ctx.needs_input_grad[3:])
        weights = [settings.of_head(k, denominators) for k in range(batch.num_heads)]

        def add(rows: _Rows) -> None:
            k, starts = rows.k, rows.starts
            measures_MKN[:, k, starts], loss_R = walk.measured(rows, weights[k])
            share_R = settings.weights_of(k, starts) * batch.weights_N[starts]
            share_R = (share_R / denominators.starts_K[k]).to(loss.dtype)
            loss.add_(loss_R @ share_R)
            gradients.add(rows, share_R)

        walk.each(add)
        ctx.save_for_backward(gradients.dhidden_KNX, *gradients.dblocks)
        ctx.mark_non_differentiable(measures_MKN)
        return loss, measures_MKN

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        scaled = [None if grad is None else grad * scale for grad in ctx.saved_tensors]
        return None, None, None, *scaled
