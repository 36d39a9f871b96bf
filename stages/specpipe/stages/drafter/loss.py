"""Losses and measures of all heads, walked in chunks of verifier rows.

No tensor of [tokens, vocabulary] is ever alive: for each chunk of rows the verifier's logits are
computed once for all heads (head k at start i and head k-1 at start i+1 share a target), then each
head's logits, its loss, and its gradient at once, and the chunk is let go. Memory is
O(chunk * D).

Definitions (arXiv 2602.23881, sections 3-4), per row, with p the verifier over the full
vocabulary, q the drafter over D, p~ = p renormalised on D, z the drafter's logits:
    alpha = sum over D of min(p, q)                     gradient of 1 - alpha: q (S' - [q < p]),
    S' = sum of q where q < p
    kl = KL(p~ || q)                                    gradient q - p~
    lk_alpha = -log alpha                               gradient of (1 - alpha), over alpha
    lk_hybrid = lambda kl + (1 - lambda)(1 - alpha),    lambda = exp(-eta * mean alpha of the head)
    ce = -log q(token)                                  gradient q - onehot; rows in D only

Legend: S verifier rows, R rows of a chunk, N starts, K heads, D draft vocabulary, H hidden size,
M measures.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specpipe.schemas.train_config import LossName
from specpipe.stages.drafter.batch import Batch

MEASURES = (
    "alpha",
    "lk",  # -log alpha
    "kl",
    "ce",  # -log q(token); 0 where the token is outside D
    "in_vocabulary",  # 1 where the token is in D
    "mass",  # m = sum of p over D
    "accept",  # w = min(1, q(token) / p(token)); 0 where the token is outside D
    "greedy_match",  # argmax q == argmax p
    "greedy_text",  # argmax q == token
)
NUM_MEASURES = len(MEASURES)


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What is minimised: a loss, each head's weight, and lk_hybrid's lambda per head."""

    loss: LossName
    head_weights_K: Tensor
    lambda_K: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Verifier:
    """The verifier's side of a batch on the draft vocabulary.

    `logits` maps pre-norm final states [R, H] to logits float32 [R, D]; `draft_ids_V` is int64
    [V], -1 outside D; `target_ids_D` is int64 [D].
    """

    logits: Callable[[Tensor], Tensor]
    draft_ids_V: Tensor
    target_ids_D: Tensor


def head_losses(
    hidden_KNH: Tensor,
    lm_head_DH: Tensor,
    batch: Batch,
    verifier: Verifier,
    settings: LossSettings | None,
    chunk_rows: int,
) -> tuple[Tensor, Tensor]:
    """The weighted loss (a scalar; differentiable), and the measures [M, K, N] (float32, detached).

    Each head's loss is a mean over its valid starts, weighted by multiplicity, over one global
    denominator. Measures of starts that a head does not use are 0. `settings` None measures only.
    """
    loss, measures_MKN = _HeadLosses.apply(  # type: ignore[no-untyped-call]
        hidden_KNH, lm_head_DH, batch, verifier, settings, chunk_rows
    )
    return loss, measures_MKN


def mean_alpha(measures_MKN: Tensor, batch: Batch) -> Tensor:
    """Mean alpha per head [K] over the valid starts, weighted by multiplicity."""
    return _mean_over_starts(measures_MKN[MEASURES.index("alpha")], batch)


@torch.no_grad()
def batch_alpha(
    hidden_KNH: Tensor, lm_head_DH: Tensor, batch: Batch, verifier: Verifier, chunk_rows: int
) -> Tensor:
    """Mean alpha per head [K] by a pass for it alone: what lk_hybrid's lambda asks for first."""
    alpha_KN = hidden_KNH.new_zeros(batch.rows_KN.shape)
    for rows in _chunks(batch, verifier, chunk_rows, hidden_KNH.dtype):
        for k in range(batch.num_heads):
            starts, at = rows.of_head(k)
            logq_RD = torch.log_softmax(hidden_KNH[k, starts] @ lm_head_DH.T, dim=-1)
            alpha_KN[k, starts] = torch.minimum(rows.logp_RD[at], logq_RD).exp_().sum(-1)
    return _mean_over_starts(alpha_KN, batch)


def _mean_over_starts(values_KN: Tensor, batch: Batch) -> Tensor:
    weights_KN = (batch.rows_KN >= 0) * batch.weights_N
    tiny = torch.finfo(torch.float32).tiny
    return (values_KN * weights_KN).sum(1) / weights_KN.sum(1).clamp(min=tiny)


def hybrid_lambda(alpha_K: Tensor, eta: float) -> Tensor:
    return torch.exp(-eta * alpha_K)


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
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor]:
        wanted = settings is not None and ctx.needs_input_grad[0]
        measures_MKN = hidden_KNH.new_zeros(NUM_MEASURES, *batch.rows_KN.shape)
        dhidden_KNH = torch.zeros_like(hidden_KNH) if wanted else None
        dweight_DH = torch.zeros_like(lm_head_DH) if wanted else None
        loss = hidden_KNH.new_zeros(())
        share_KN = _shares(batch, verifier, settings) if settings else None
        for rows in _chunks(batch, verifier, chunk_rows, hidden_KNH.dtype):
            for k in range(batch.num_heads):
                starts, at = rows.of_head(k)
                if not len(starts):
                    continue
                hidden_RH = hidden_KNH[k, starts]
                logq_RD = torch.log_softmax(hidden_RH @ lm_head_DH.T, dim=-1)
                measures = _measure(logq_RD, rows, at)
                measures_MKN[:, k, starts] = measures
                if settings is None or share_KN is None:
                    continue
                lambda_k = None if settings.lambda_K is None else settings.lambda_K[k]
                share_R1 = share_KN[k, starts].unsqueeze(1)
                row_loss_R = _row_loss(settings.loss, measures, lambda_k)
                loss += (row_loss_R * share_R1.squeeze(1)).sum()
                if dhidden_KNH is not None and dweight_DH is not None:
                    dlogits_RD = _row_gradient(settings.loss, logq_RD, measures, rows, at, lambda_k)
                    dlogits_RD *= share_R1
                    dhidden_KNH[k, starts] = dlogits_RD @ lm_head_DH
                    dweight_DH.addmm_(dlogits_RD.T, hidden_RH)
        ctx.save_for_backward(dhidden_KNH, dweight_DH)
        ctx.mark_non_differentiable(measures_MKN)
        return loss, measures_MKN

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dhidden_KNH, dweight_DH = ctx.saved_tensors
        if dhidden_KNH is None:
            return (None,) * 6
        scale = grad_outputs[0]
        return dhidden_KNH * scale, dweight_DH * scale, None, None, None, None


@dataclass(slots=True)
class _Chunk:
    """Verifier rows [begin, end) and what every head needs of them."""

    logp_RD: Tensor
    logmass_R: Tensor
    token_draft_R: Tensor
    token_logprob_R: Tensor
    argmax_R: Tensor
    token_R: Tensor
    target_ids_D: Tensor
    start_of_row_KR: Tensor

    def of_head(self, k: int) -> tuple[Tensor, Tensor]:
        """Starts of head k that are held to these rows, and the rows' indices in the chunk."""
        at = torch.nonzero(self.start_of_row_KR[k] >= 0).squeeze(1)
        return self.start_of_row_KR[k, at], at


def _chunks(
    batch: Batch, verifier: Verifier, chunk_rows: int, dtype: torch.dtype
) -> Iterator[_Chunk]:
    num_rows = len(batch.final_SH)
    start_of_row_KS = batch.rows_KN.new_full((batch.num_heads, num_rows), -1)
    head_K, start = torch.nonzero(batch.rows_KN >= 0, as_tuple=True)
    start_of_row_KS[head_K, batch.rows_KN[head_K, start]] = start
    for begin in range(0, num_rows, chunk_rows):
        rows = slice(begin, min(begin + chunk_rows, num_rows))
        logits_RD = verifier.logits(batch.final_SH[rows]).to(dtype)
        logp_RD = logits_RD - batch.logz_S[rows].to(dtype).unsqueeze(1)
        yield _Chunk(
            logp_RD=logp_RD,
            logmass_R=torch.logsumexp(logp_RD, dim=-1),
            token_draft_R=verifier.draft_ids_V[batch.next_token_S[rows]],
            token_logprob_R=batch.token_logprob_S[rows].to(dtype),
            argmax_R=batch.argmax_S[rows],
            token_R=batch.next_token_S[rows],
            target_ids_D=verifier.target_ids_D,
            start_of_row_KR=start_of_row_KS[:, rows],
        )


def _shares(batch: Batch, verifier: Verifier, settings: LossSettings) -> Tensor:
    """What each start's loss counts for in the total: [K, N]."""
    counts_KN = (batch.rows_KN >= 0) * batch.weights_N
    if settings.loss == "ce":
        in_vocab_S = verifier.draft_ids_V[batch.next_token_S] >= 0
        counts_KN = counts_KN * in_vocab_S[batch.rows_KN.clamp(min=0)]
    sums_K1 = counts_KN.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return settings.head_weights_K.unsqueeze(1) * counts_KN / sums_K1


def _measure(logq_RD: Tensor, rows: _Chunk, at: Tensor) -> Tensor:
    """The measures [M, R] of one head on the chunk's rows `at`."""
    logp_RD, logmass_R = rows.logp_RD[at], rows.logmass_R[at]
    lk_R = -torch.logsumexp(torch.minimum(logp_RD, logq_RD), dim=-1)
    # p~ from logarithms: the mass itself may underflow.
    logpt_RD = logp_RD - logmass_R.unsqueeze(1)
    pt_RD = torch.exp(logpt_RD)
    # A token of probability 0 counts for nothing, also where q is 0 as well.
    kl_R = torch.where(pt_RD > 0, pt_RD * (logpt_RD - logq_RD), 0.0).sum(-1)
    token_R = rows.token_draft_R[at]
    inside_R = token_R >= 0
    logq_token_R = logq_RD.gather(1, token_R.clamp(min=0).unsqueeze(1)).squeeze(1)
    ratio_R = torch.exp((logq_token_R - rows.token_logprob_R[at]).clamp(max=0.0))
    drafted_R = rows.target_ids_D[logq_RD.argmax(-1)]
    dtype = logq_RD.dtype
    return torch.stack(
        [
            torch.exp(-lk_R),
            lk_R,
            kl_R,
            torch.where(inside_R, -logq_token_R, 0.0),
            inside_R.to(dtype),
            torch.exp(logmass_R),
            torch.where(inside_R, ratio_R, 0.0),
            (drafted_R == rows.argmax_R[at]).to(dtype),
            (drafted_R == rows.token_R[at]).to(dtype),
        ]
    )


def _row_loss(loss: LossName, measures: Tensor, lambda_k: Tensor | None) -> Tensor:
    alpha, lk, kl, ce = measures[0], measures[1], measures[2], measures[3]
    if loss == "lk_hybrid":
        assert lambda_k is not None
        return lambda_k * kl + (1 - lambda_k) * (1 - alpha)
    return {"kl": kl, "lk_alpha": lk, "ce": ce, "tv": 1 - alpha}[loss]


def _row_gradient(
    loss: LossName,
    logq_RD: Tensor,
    measures: Tensor,
    rows: _Chunk,
    at: Tensor,
    lambda_k: Tensor | None,
) -> Tensor:
    """Gradient of the loss with respect to the drafter's logits, [R, D]."""
    if loss == "ce":
        grad_RD = torch.exp(logq_RD)
        token_R1 = rows.token_draft_R[at].clamp(min=0).unsqueeze(1)
        return grad_RD.scatter_add_(1, token_R1, -torch.ones_like(token_R1, dtype=grad_RD.dtype))
    logp_RD = rows.logp_RD[at]
    if loss == "kl":
        return _kl_gradient(logq_RD, logp_RD, rows.logmass_R[at])
    if loss == "tv":
        return _overlap_gradient(logq_RD, logp_RD, torch.zeros_like(measures[1]))
    if loss == "lk_alpha":
        return _overlap_gradient(logq_RD, logp_RD, -measures[1])
    assert lambda_k is not None
    kl_RD = _kl_gradient(logq_RD, logp_RD, rows.logmass_R[at])
    tv_RD = _overlap_gradient(logq_RD, logp_RD, torch.zeros_like(measures[1]))
    return lambda_k * kl_RD + (1 - lambda_k) * tv_RD


def _kl_gradient(logq_RD: Tensor, logp_RD: Tensor, logmass_R: Tensor) -> Tensor:
    return torch.exp(logq_RD) - torch.exp(logp_RD - logmass_R.unsqueeze(1))


def _overlap_gradient(logq_RD: Tensor, logp_RD: Tensor, log_scale_R: Tensor) -> Tensor:
    """Gradient of (1 - alpha) / scale with the scale held fixed, in log space.

    With scale alpha it is that of -log alpha: alpha may underflow, the quotients do not.
    """
    below_RD = logq_RD < logp_RD
    scaled_RD = torch.where(below_RD, logq_RD - log_scale_R.unsqueeze(1), -torch.inf).exp()
    return torch.exp(logq_RD) * scaled_RD.sum(-1, keepdim=True) - scaled_RD
