"""Losses of parts of a global batch, sums of losses, and where lk_hybrid's lambda comes from.

Legend: S verifier rows, N starts, K heads, D draft vocabulary, H hidden size, V vocabulary.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from specpipe.schemas.settings.train import LossName
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.measures import MEASURES, alpha_sums_of
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.samples.batch import Batch
from tests.acceptance.loss.loss_rows import ETA, LOSSES
from tests.drafters.toys import (
    DRAFT_IDS,
    H,
    V,
    double_batch,
    random_drafter,
    random_samples,
    shape_of,
    verifier_of,
)

K = 3
LM_HEAD_VH = torch.randn(V, H, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
VERIFIER = verifier_of(LM_HEAD_VH, DRAFT_IDS)
MASKS = [[0, 0, 1, 1, 1, 1, 1], [1] * 9, [0, 1, 1, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
WEIGHTS_K = torch.tensor([1.0, 0.7, 0.4], dtype=torch.float64)

Gradients = dict[str, Tensor]


def batches(groups: Sequence[Sequence[int]]) -> list[Batch]:
    samples = random_samples(MASKS, LM_HEAD_VH)
    return [double_batch([samples[i] for i in group], K) for group in groups]


def trained(
    parts: Sequence[Batch], settings: LossSettings, denominators: Denominators
) -> tuple[float, Gradients]:
    """The summed loss of the parts, and its gradients in every parameter of a drafter."""
    model = random_drafter(shape_of(len(DRAFT_IDS)), 5).double()
    total = 0.0
    for batch in parts:
        loss, _ = HeadLoss(VERIFIER, 4)(
            model(batch), Heads.shared(model.lm_head.weight), batch, settings, denominators
        )
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def counted(parts: Sequence[Batch]) -> Denominators:
    first, *others = (Denominators.of(batch, VERIFIER.draft_ids_V) for batch in parts)
    return sum(others, start=first)


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_add_up_to_the_whole(loss: LossName) -> None:
    """Each part alone has other denominators: only global ones give the same gradient."""
    settings = LossSettings({loss: 1.0}, WEIGHTS_K, torch.tensor([0.2, 0.5, 0.9]).double())
    [whole] = batches([[0, 1, 2, 3]])
    value, gradients = trained([whole], settings, counted([whole]))
    for groups in ([[0], [1], [2], [3]], [[3, 1], [0, 2]]):
        parts = batches(groups)
        denominators = counted(parts)
        torch.testing.assert_close(denominators.counts_2K, counted([whole]).counts_2K)
        summed, of_parts = trained(parts, settings, denominators)
        assert summed == pytest.approx(value, rel=1e-12)
        assert of_parts.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(of_parts[name], gradient, rtol=1e-9, atol=1e-12)


def test_denominators_count_weighted_starts() -> None:
    [batch] = batches([[0, 1, 2, 3]])
    denominators = Denominators.of(batch, VERIFIER.draft_ids_V)
    for k in range(K):
        used = [n for n in range(len(batch.starts_N)) if batch.rows_KN[k, n] >= 0]
        inside = [n for n in used if int(batch.next_token_S[batch.rows_KN[k, n]]) in DRAFT_IDS]
        assert denominators.starts_K[k] == sum(float(batch.weights_N[n]) for n in used)
        assert denominators.inside_K[k] == sum(float(batch.weights_N[n]) for n in inside)
        assert 0 < len(inside) < len(used)


def test_alpha_of_the_global_batch_is_the_sum_of_its_parts() -> None:
    model = random_drafter(shape_of(len(DRAFT_IDS)), 5).double()
    head = model.lm_head.weight.detach()
    [whole], parts = batches([[0, 1, 2, 3]]), batches([[1], [0, 3], [2]])
    with torch.no_grad():
        sums = [
            HeadLoss(VERIFIER, 3).alpha_sums(model(batch), Heads.shared(head), batch)
            for batch in [whole, *parts]
        ]
        measures = HeadLoss(VERIFIER, 3).measures(model(whole), Heads.shared(head), whole)
    torch.testing.assert_close(sums[0], sum(sums[1:]), rtol=1e-12, atol=0)
    torch.testing.assert_close(sums[0], alpha_sums_of(measures, whole), rtol=1e-12, atol=0)


def test_a_sum_of_losses_is_the_sum_of_their_gradients() -> None:
    weights: dict[LossName, float] = {
        "kl": 0.5, "lk_alpha": 0.25, "lk_hybrid": 1.5, "ce": 0.75, "tv": 2.0,
    }  # fmt: skip
    lambda_K = torch.tensor([0.2, 0.5, 0.9]).double()
    [batch] = batches([[0, 1, 2, 3]])
    denominators = counted([batch])
    value, gradients = trained([batch], LossSettings(weights, WEIGHTS_K, lambda_K), denominators)
    expected, summed = 0.0, {name: torch.zeros_like(g) for name, g in gradients.items()}
    for name, weight in weights.items():
        settings = LossSettings({name: 1.0}, WEIGHTS_K, lambda_K)
        one, of_one = trained([batch], settings, denominators)
        expected += weight * one
        for parameter, gradient in of_one.items():
            summed[parameter] += weight * gradient
    assert value == pytest.approx(expected, rel=1e-12)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, summed[parameter], rtol=1e-9, atol=1e-12)


def test_lambda_of_each_start_by_itself() -> None:
    """Scope `token`: exp(-eta alpha) of the start, and no gradient through it."""
    [batch] = batches([[0, 1, 2, 3]])
    denominators = counted([batch])
    model = random_drafter(shape_of(len(DRAFT_IDS)), 5).double()
    hidden, head = model(batch).detach().requires_grad_(), model.lm_head.weight.detach()

    def gradient(settings: LossSettings) -> tuple[Tensor, Tensor, Tensor]:
        loss, measures = HeadLoss(VERIFIER, 4)(
            hidden, Heads.shared(head), batch, settings, denominators
        )
        [dhidden] = torch.autograd.grad(loss, hidden)
        return loss.detach(), dhidden, measures

    value, dhidden, measures = gradient(LossSettings({"lk_hybrid": 1.0}, WEIGHTS_K, None, ETA))
    _, of_kl, _ = gradient(LossSettings({"kl": 1.0}, WEIGHTS_K))
    _, of_tv, _ = gradient(LossSettings({"tv": 1.0}, WEIGHTS_K))
    alpha_KN, kl_KN = (measures[MEASURES.index(name)] for name in ("alpha", "kl"))
    lambda_KN = torch.exp(-ETA * alpha_KN)
    assert lambda_KN.std() > 0.05
    mix = lambda_KN.unsqueeze(-1)
    torch.testing.assert_close(dhidden, mix * of_kl + (1 - mix) * of_tv, rtol=1e-9, atol=1e-12)
    share_KN = (batch.rows_KN >= 0) * batch.weights_N / denominators.starts_K.unsqueeze(1)
    rows_KN = lambda_KN * kl_KN + (1 - lambda_KN) * (1 - alpha_KN)
    expected = (rows_KN * share_KN).sum(1) @ WEIGHTS_K
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
