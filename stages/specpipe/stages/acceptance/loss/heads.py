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

Legend: R rows of a chunk, N starts, K heads, D draft vocabulary, H hidden size, M measures.
"""

from typing import Any

import torch
from torch import Tensor

from specpipe.stages.acceptance.loss.chunk import VerifierChunk, verifier_chunks
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.measures import NUM_MEASURES, sum_over_starts
from specpipe.stages.acceptance.loss.row_pass import LogRows, RowPass
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.samples.batch import Batch


def head_losses(
    hidden_KNH: Tensor,
    lm_head_DH: Tensor,
    batch: Batch,
    verifier: Verifier,
    settings: LossSettings | None,
    chunk_rows: int,
    denominators: Denominators | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted loss (a scalar; differentiable), and the measures [M, K, N] (detached).

    Each head's loss is a sum over its valid starts, weighted by multiplicity, over
    `denominators`: those of the global batch of which this is a part; None: of this batch alone.
    Measures of starts that a head does not use are 0. `settings` None measures only.
    """
    if denominators is None:
        denominators = Denominators.of(batch, verifier.draft_ids_V)
    loss, measures_MKN = _HeadLosses.apply(  # type: ignore[no-untyped-call]
        hidden_KNH, lm_head_DH, batch, verifier, settings, denominators, chunk_rows
    )
    return loss, measures_MKN


@torch.no_grad()
def alpha_sums(
    hidden_KNH: Tensor, lm_head_DH: Tensor, batch: Batch, verifier: Verifier, chunk_rows: int
) -> Tensor:
    """Numerators of each head's mean alpha, float64 [K], by a pass for them alone.

    Summed over micro-batches and ranks, over `Denominators.starts_K`, they are what lk_hybrid's
    lambda asks for before the first gradient.
    """
    alpha_KN = hidden_KNH.new_zeros(batch.rows_KN.shape)
    row_pass = RowPass(chunk_rows, verifier.target_ids_D, hidden_KNH)
    buffer_RD = hidden_KNH.new_empty(chunk_rows_of(batch, chunk_rows), len(lm_head_DH))
    for chunk in verifier_chunks(batch, verifier, chunk_rows, hidden_KNH.dtype):
        for k in range(batch.num_heads):
            starts, at = chunk.of_head(k)
            if len(starts):
                logits_RD = buffer_RD[: len(starts)]
                torch.mm(hidden_KNH[k, starts], lm_head_DH.T, out=logits_RD)
                alpha_KN[k, starts] = row_pass.alpha(logits_RD, chunk, at)
        del chunk
    return sum_over_starts(alpha_KN, batch)


def chunk_rows_of(batch: Batch, chunk_rows: int) -> int:
    """Rows of the batch's largest chunk."""
    return min(chunk_rows, len(batch.next_token_S))


class _HeadLosses(torch.autograd.Function):
    """Gradients are taken while a chunk is alive; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KNH: Tensor,
        lm_head_DH: Tensor,
        batch: Batch,
        verifier: Verifier,
        settings: LossSettings | None,
        denominators: Denominators,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor]:
        wanted = settings is not None and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        measures_MKN = hidden_KNH.new_zeros(NUM_MEASURES, *batch.rows_KN.shape)
        dhidden_KNH = torch.zeros_like(hidden_KNH) if wanted else None
        dweight_DH = torch.zeros_like(lm_head_DH) if wanted else None
        loss = hidden_KNH.new_zeros(())
        row_pass = RowPass(chunk_rows, verifier.target_ids_D, hidden_KNH)
        buffer_RD = hidden_KNH.new_empty(chunk_rows_of(batch, chunk_rows), len(lm_head_DH))
        heads = (
            [settings.of_head(k, denominators) for k in range(batch.num_heads)] if settings else []
        )
        for chunk in verifier_chunks(batch, verifier, chunk_rows, hidden_KNH.dtype):
            for k in range(batch.num_heads):
                starts, at = chunk.of_head(k)
                if not len(starts):
                    continue
                hidden_RH, logits_RD = hidden_KNH[k, starts], buffer_RD[: len(starts)]
                torch.mm(hidden_RH, lm_head_DH.T, out=logits_RD)
                measures_MKN[:, k, starts], loss_R = row_pass(
                    logits_RD,
                    chunk,
                    at,
                    heads[k] if heads else None,
                    _log_rows(hidden_RH, lm_head_DH, batch, verifier, chunk, at),
                )
                if settings is None:
                    continue
                share_R = settings.head_weights_K[k] * batch.weights_N[starts]
                share_R = (share_R / denominators.starts_K[k]).to(loss.dtype)
                loss += loss_R @ share_R
                if dhidden_KNH is not None and dweight_DH is not None:
                    share_R1 = share_R.unsqueeze(1)
                    dhidden_KNH[k, starts] = (logits_RD @ lm_head_DH).mul_(share_R1)
                    dweight_DH.addmm_(logits_RD.T, hidden_RH * share_R1)
            del chunk
        ctx.save_for_backward(dhidden_KNH, dweight_DH)
        ctx.mark_non_differentiable(measures_MKN)
        return loss, measures_MKN

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dhidden_KNH, dweight_DH = ctx.saved_tensors
        nothing = (None,) * 5
        if dhidden_KNH is None:
            return (None, None, *nothing)
        scale = grad_outputs[0]
        return dhidden_KNH * scale, dweight_DH * scale, *nothing


def _log_rows(
    hidden_RH: Tensor,
    lm_head_DH: Tensor,
    batch: Batch,
    verifier: Verifier,
    chunk: VerifierChunk,
    at_R: Tensor,
) -> LogRows:
    """Some rows of a head as log p and log q, for the few that need them exactly."""

    def log_rows(row_X: Tensor) -> tuple[Tensor, Tensor]:
        logp_XD = verifier.logp(batch, chunk.begin + at_R[row_X])
        logq_XD = torch.log_softmax(hidden_RH[row_X] @ lm_head_DH.T, dim=-1)
        return logp_XD.to(logq_XD.dtype), logq_XD

    return log_rows
