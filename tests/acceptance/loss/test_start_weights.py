"""Weights of single starts, D-PACE's among them, against naive float64 references.

Legend: N starts, K heads, D draft vocabulary, M measures.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from specpipe.schemas.settings.train import LossName
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.dpace import dpace_weights
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.measures import MEASURES
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.samples.batch import Batch
from tests.acceptance.loss.loss_rows import LOSSES, close, random_rows, rows_batch

D, V, NUM_STARTS = 5, 6, 8
VERIFIER = Verifier(
    lambda final_RV: final_RV[:, :D].clone(), torch.tensor([0, 1, 2, 3, 4, -1]), torch.arange(D)
)
HEAD_LOSS = HeadLoss(VERIFIER, 3)
HEADS = Heads.shared(torch.eye(D, dtype=torch.float64))


def rows() -> tuple[Tensor, Batch]:
    """Logits [K, N, D] that require grad, and what they are held to."""
    _, draft_KNV, batch = random_rows(NUM_STARTS, V, seed=4)
    return draft_KNV[..., :D].contiguous().requires_grad_(), batch


def measures_of(q_KN: Tensor) -> Tensor:
    measures_MKN = torch.zeros(len(MEASURES), *q_KN.shape, dtype=torch.float64)
    measures_MKN[MEASURES.index("ce")] = -q_KN.log()
    measures_MKN[MEASURES.index("in_vocabulary")] = 1.0
    return measures_MKN


def naive_dpace(q: list[float | None], smoothing: float) -> list[float]:
    """Of one start's steps; None is a step that is not used."""
    weights = []
    for j, own in enumerate(q):
        total = 0.0
        for m in range(j, len(q)):
            if own is not None and q[m] is not None:
                confidences = [c for c in q[: m + 1] if c is not None]
                total += math.prod((1 - smoothing) * c + smoothing for c in confidences)
        weights.append(total)
    return weights


def test_worked_dpace() -> None:
    """The number of the project's collection: q = (.9, .6, .3), a = .5."""
    batch = rows_batch(torch.zeros(3, 4), [0, 1, 2], [[0], [1], [2]])
    q_KN = torch.tensor([[0.9], [0.6], [0.3]], dtype=torch.float64)
    close(dpace_weights(measures_of(q_KN), batch, 0.5), [2.204, 1.254, 0.494], 1e-12)
    close(dpace_weights(measures_of(q_KN), batch, 1.0), [3.0, 2.0, 1.0], 1e-12)


def test_dpace_of_starts_that_not_every_head_uses() -> None:
    """Ends of spans, and gaps, as sampled draft steps leave them."""
    rows_KN = [[0, 1, 2, -1], [1, 2, -1, 3], [2, -1, 3, -1]]
    batch = rows_batch(torch.zeros(4, 5), [0, 1, 2, 3], rows_KN)
    q_KN = torch.rand(3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights_KN = dpace_weights(measures_of(q_KN), batch, 0.3)
    for n in range(4):
        q = [float(q_KN[k, n]) if rows_KN[k][n] >= 0 else None for k in range(3)]
        close(weights_KN[:, n], naive_dpace(q, 0.3), 1e-12)


def test_a_token_outside_the_draft_vocabulary_is_never_drafted() -> None:
    logits_KND, batch = rows()
    batch = replace(batch, next_token_S=torch.full((NUM_STARTS,), D))
    weights_KN = dpace_weights(HEAD_LOSS.measures(logits_KND, HEADS, batch), batch, 0.5)
    close(weights_KN[:, 0], [0.5 + 0.25, 0.25], 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_start_weights_are_weights_of_a_mean_over_starts(loss: LossName) -> None:
    """Value and gradient are those of each start alone, times its weight and its share."""
    logits_KND, batch = rows()
    lambda_K = torch.tensor([0.3, 0.6], dtype=torch.float64)
    settings = LossSettings({loss: 1.0}, torch.ones(2, dtype=torch.float64), lambda_K)
    weights_KN = torch.rand(2, NUM_STARTS, generator=torch.Generator().manual_seed(5)).double()
    denominators = Denominators.of(batch, VERIFIER.draft_ids_V)
    value, _ = HEAD_LOSS(logits_KND, HEADS, batch, replace(settings, weights_KN=weights_KN))
    [gradient] = torch.autograd.grad(value, logits_KND)
    expected, summed = 0.0, torch.zeros_like(logits_KND)
    for k in range(2):
        for n in range(NUM_STARTS):
            alone = torch.full_like(batch.rows_KN, -1)
            alone[k, n] = batch.rows_KN[k, n]
            one, _ = HEAD_LOSS(
                logits_KND, HEADS, replace(batch, rows_KN=alone), settings, denominators
            )
            [of_one] = torch.autograd.grad(one, logits_KND)
            expected += float(weights_KN[k, n] * one.detach())
            summed += weights_KN[k, n] * of_one
    assert value.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient, summed, rtol=1e-10, atol=1e-14)


def test_dpace_weights_carry_no_gradient() -> None:
    """The gradient of kl under D-PACE is that of kl with the weights as numbers."""
    logits_KND, batch = rows()
    weights_KN = dpace_weights(HEAD_LOSS.measures(logits_KND, HEADS, batch), batch, 0.5)
    assert not weights_KN.requires_grad
    assert batch.final_SH is not None
    expected = torch.zeros((), dtype=torch.float64)
    for k in range(2):
        used = torch.nonzero(batch.rows_KN[k] >= 0).squeeze(1)
        p = torch.softmax(batch.final_SH[batch.rows_KN[k, used], :D], -1)
        logq = torch.log_softmax(logits_KND[k, used], -1)
        kl = (p * (p.log() - logq)).sum(-1)
        share = batch.weights_N[used] / batch.weights_N[used].sum()
        expected = expected + (weights_KN[k, used] * share * kl).sum()
    settings = LossSettings({"kl": 1.0}, torch.ones(2).double(), weights_KN=weights_KN)
    value, _ = HEAD_LOSS(logits_KND, HEADS, batch, settings)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(value, logits_KND), torch.autograd.grad(expected, logits_KND),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_weights_of_heads_are_weights_of_all_their_starts() -> None:
    logits_KND, batch = rows()
    weights_K = torch.tensor([1.0, 0.7], dtype=torch.float64)
    of_heads = LossSettings({"lk_alpha": 1.0, "ce": 0.5}, weights_K)
    of_starts = replace(of_heads, weights_KN=weights_K[:, None].expand(2, NUM_STARTS))
    for one, other in zip(
        HEAD_LOSS(logits_KND, HEADS, batch, of_heads),
        HEAD_LOSS(logits_KND, HEADS, batch, of_starts),
        strict=True,
    ):
        assert torch.equal(one, other)
