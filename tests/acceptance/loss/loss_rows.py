"""Single rows of the loss, given as logits: lm_head is the identity, so hidden states are logits.

Legend: S verifier rows, N starts, K heads, D draft vocabulary, V vocabulary, M measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from specpipe.schemas.settings.train import LossName
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.measures import MEASURES, alpha_sums_of
from specpipe.stages.acceptance.loss.settings import LossSettings, hybrid_lambda
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.samples.batch import Batch

LOSSES: tuple[LossName, ...] = get_args(LossName)
ETA = 3.0


@dataclass(frozen=True)
class Outcome:
    value: float
    gradient_KND: Tensor
    measures_MKN: Tensor
    lambda_K: Tensor

    def measure(self, name: str) -> Tensor:
        return self.measures_MKN[MEASURES.index(name)]


def rows_batch(
    target_SV: Tensor,
    tokens_S: Sequence[int],
    rows_KN: Sequence[Sequence[int]],
    weights_N: Sequence[float] | None = None,
) -> Batch:
    """A batch of which only the verifier's side and the rows matter; final states are logits."""
    num_starts = len(rows_KN[0])
    tokens, starts = torch.tensor(tokens_S), torch.arange(num_starts)
    logprobs_SV = torch.log_softmax(target_SV, dim=-1)
    return Batch(
        input_ids_T=starts,
        positions_T=starts,
        aux_TLH=torch.zeros(num_starts, 1, 1),
        final_SH=target_SV,
        logz_S=torch.logsumexp(target_SV, dim=-1),
        token_logprob_S=logprobs_SV.gather(1, tokens[:, None])[:, 0],
        argmax_S=target_SV.argmax(-1),
        next_token_S=tokens,
        row_weights_S=torch.ones(len(tokens)),
        starts_N=starts,
        weights_N=torch.tensor(weights_N or [1.0] * num_starts, dtype=target_SV.dtype),
        emitted_N=torch.ones(num_starts, dtype=torch.bool),
        rows_KN=torch.tensor(rows_KN),
        spans=(),
    )


def evaluate(
    loss: LossName,
    draft_KND: Tensor,
    batch: Batch,
    target_ids: Sequence[int] | None = None,
    *,
    decay: float = 1.0,
    chunk_rows: int = 1000,
    lambda_K: Tensor | None = None,
) -> Outcome:
    """Loss, gradient in the drafter's logits, and measures; lambda is the batch's own."""
    num_heads, _, draft_size = draft_KND.shape
    ids = torch.tensor(range(draft_size) if target_ids is None else target_ids)
    assert batch.final_SH is not None
    draft_ids_V = torch.full((batch.final_SH.shape[1],), -1)
    draft_ids_V[ids] = torch.arange(draft_size)
    verifier = Verifier(lambda final_RV: final_RV[:, ids], draft_ids_V, ids)
    hidden_KND = draft_KND.detach().clone().requires_grad_()
    head = torch.eye(draft_size, dtype=draft_KND.dtype)
    head_loss, heads = HeadLoss(verifier, chunk_rows), Heads.shared(head)
    measures = head_loss.measures(hidden_KND, heads, batch)
    sums_K = alpha_sums_of(measures, batch)
    alone_K = head_loss.alpha_sums(hidden_KND, heads, batch)
    torch.testing.assert_close(alone_K, sums_K, rtol=1e-5, atol=1e-6)
    if lambda_K is None:
        lambda_K = hybrid_lambda(mean_alpha(measures, batch), ETA)
    weights_K = decay ** torch.arange(num_heads, dtype=draft_KND.dtype)
    loss_settings = LossSettings({loss: 1.0}, weights_K, lambda_K)
    value, again = head_loss(hidden_KND, heads, batch, loss_settings)
    assert torch.equal(measures, again)
    [gradient] = torch.autograd.grad(value, hidden_KND)
    return Outcome(float(value.detach()), gradient, measures, lambda_K)


def mean_alpha(measures_MKN: Tensor, batch: Batch) -> Tensor:
    """Of each head, [K], over its valid starts, weighted by multiplicity."""
    weights_KN = (batch.rows_KN >= 0) * batch.weights_N
    alpha_KN = measures_MKN[MEASURES.index("alpha")]
    mean_K: Tensor = (alpha_KN * weights_KN).sum(1) / weights_KN.sum(1)
    return mean_K


def one_row(
    loss: LossName,
    target_V: Sequence[float] | Tensor,
    draft_D: Sequence[float] | Tensor,
    target_ids: Sequence[int] | None = None,
    token: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Outcome:
    target_SV = torch.as_tensor(target_V, dtype=dtype)[None]
    draft_KND = torch.as_tensor(draft_D, dtype=dtype)[None, None]
    return evaluate(loss, draft_KND, rows_batch(target_SV, [token], [[0]]), target_ids)


def logs(probabilities: Sequence[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def close(got: float | Tensor, want: float | Sequence[float], atol: float = 6e-7) -> None:
    got = torch.as_tensor(got, dtype=torch.float64).squeeze()
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=atol)


def random_rows(
    num_rows: int, vocab: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Batch]:
    """Two heads on a run of rows: head 2 at start n is held to the row of head 1 at n + 1."""
    generator = torch.Generator().manual_seed(seed)
    target_SV = (torch.randn(num_rows, vocab, generator=generator) * 2).to(dtype)
    draft_KND = (torch.randn(2, num_rows, vocab, generator=generator) * 2).to(dtype)
    rows_KN = [list(range(num_rows)), [*range(1, num_rows), -1]]
    weights = [1.0 + n % 3 for n in range(num_rows)]
    tokens = torch.randint(vocab, (num_rows,), generator=generator).tolist()
    return target_SV, draft_KND, rows_batch(target_SV, tokens, rows_KN, weights)
