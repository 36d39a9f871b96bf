"""Losses, gradients and measures of single rows: worked numbers, identities, extremes.

The worked numbers are those of the project's collection (losses-and-metrics, section 6); most
can be redone on paper.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.schemas.settings.train import LossName
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.acceptance.loss.verifier import Verifier
from tests.acceptance.loss.loss_rows import ETA, LOSSES, close, evaluate, logs, one_row, rows_batch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("p", "q", "values", "gradients"),
    [
        (
            (0.5, 0.3, 0.2),
            (0.2, 0.5, 0.3),
            {"alpha": 0.7, "tv": 0.3, "lk_alpha": 0.356675, "kl": 0.223805, "lk_hybrid": 0.290669},
            {
                "kl": (-0.3, 0.2, 0.1),
                "tv": (-0.16, 0.10, 0.06),
                "lk_alpha": (-0.228571, 0.142857, 0.085714),
                "lk_hybrid": (-0.177144, 0.112246, 0.064898),
            },
        ),
        (
            (0.7, 0.2, 0.1),
            (0.6, 0.1, 0.3),
            {"alpha": 0.8, "tv": 0.2, "lk_alpha": 0.223144, "kl": 0.136674, "lk_hybrid": 0.194255},
            {
                "kl": (-0.1, -0.1, 0.2),
                "tv": (-0.18, -0.03, 0.21),
                "lk_alpha": (-0.225, -0.0375, 0.2625),
                "lk_hybrid": (-0.172743, -0.036350, 0.209093),
            },
        ),
    ],
)
def test_worked_three_token_examples(
    p: tuple[float, ...],
    q: tuple[float, ...],
    values: dict[str, float],
    gradients: dict[LossName, tuple[float, ...]],
    dtype: torch.dtype,
) -> None:
    for loss, gradient in gradients.items():
        out = one_row(loss, logs(p), logs(q), dtype=dtype)
        close(out.value, values[loss], 1e-6)
        close(out.gradient_KND, gradient, 1e-6)
        close(out.measure("alpha"), values["alpha"], 1e-6)
        close(out.measure("lk"), values["lk_alpha"], 1e-6)
        close(out.measure("kl"), values["kl"], 1e-6)
        close(out.measure("mass"), 1.0, 1e-6)
    close(out.lambda_K, math.exp(-ETA * values["alpha"]), 1e-6)


def test_worked_cross_entropies() -> None:
    """The data's tokens in proportion to p: mean -log q(token) is H(p, q), less KL it is H(p)."""
    p, q = (0.5, 0.3, 0.2), (0.2, 0.5, 0.3)
    batch = rows_batch(logs(p).expand(3, 3), [0, 1, 2], [[0, 1, 2]], weights_N=p)
    out = evaluate("ce", logs(q).expand(1, 3, 3), batch)
    close(out.value, 1.253458)
    close(out.value - out.measure("kl")[0, 0], 1.029653)
    close(out.gradient_KND.sum(1), (-0.3, 0.2, 0.1))
    # w = min(1, q/p) of the token; its mean over p is alpha.
    close(out.measure("accept"), (0.4, 1.0, 1.0))
    close(out.measure("greedy_text"), (0.0, 1.0, 0.0))
    close(out.measure("greedy_match"), (0.0, 0.0, 0.0))


def test_worked_truncated_vocabulary() -> None:
    """q dominates p on D: alpha is saturated at m, and its gradient vanishes."""
    target, draft, ids = (2.0, 1.0, 0.0, 1.5, -1.0), (1.5, 1.2, 0.1), [0, 1, 2]
    out = one_row("lk_alpha", target, draft, ids)
    close(out.measure("mass"), 0.696083)
    close(out.measure("alpha"), 0.696083)
    close(out.value, 0.362286)
    close(out.gradient_KND, (0.0, 0.0, 0.0))
    close(out.measure("kl"), 0.053901)
    close(out.lambda_K, 0.123904)
    close(one_row("lk_hybrid", target, draft, ids).value, 0.272939)
    p = torch.softmax(torch.tensor(target, dtype=torch.float64), 0)[:3]
    q = torch.softmax(torch.tensor(draft, dtype=torch.float64), 0)
    close(one_row("kl", target, draft, ids).gradient_KND, (q - p / p.sum()).tolist())
    close(one_row("tv", target, draft, ids).value, 1 - 0.696083)


def test_permuted_draft_ids_name_the_right_tokens() -> None:
    """D = {1, 3} of five tokens: p, the token and both argmaxes go through the map."""
    target = logs((0.1, 0.2, 0.05, 0.6, 0.05))
    out = one_row("tv", target, logs((0.3, 0.7)), [1, 3], token=3)
    close(out.value, 1 - (0.2 + 0.6))
    close(out.measure("ce"), -math.log(0.7))
    close(out.measure("accept"), 1.0)
    close(out.measure("greedy_match"), 1.0)
    close(out.measure("greedy_text"), 1.0)
    out = one_row("tv", target, logs((0.3, 0.7)), [1, 3], token=1)
    close(out.measure("greedy_text"), 0.0)
    close(out.measure("accept"), 1.0)
    # Draft id 0 is target id 1, not 0: the token 0 is outside.
    out = one_row("tv", target, logs((0.7, 0.3)), [1, 3], token=0)
    for name in ("accept", "greedy_match", "greedy_text", "in_vocabulary", "ce"):
        close(out.measure(name), 0.0)


def test_cold_start_regime() -> None:
    """q uniform on 32,000 tokens, p on four of them; lm_head zero, its gradient the logits'."""
    size, k = 32000, 4
    target_SV = torch.full((1, size), -math.inf)
    target_SV[:, :k] = 0.0
    batch = rows_batch(target_SV, [0], [[0]])
    everything = torch.arange(size)
    verifier = Verifier(torch.clone, everything, everything)
    values, norms = {}, {}
    for loss in ("kl", "tv", "lk_alpha"):
        hidden, head = torch.ones(1, 1, 1, requires_grad=True), torch.zeros(size, 1)
        head.requires_grad_()
        loss_settings = LossSettings({loss: 1.0}, torch.ones(1))
        value, _ = HeadLoss(verifier, 1)(hidden, Heads.shared(head), batch, loss_settings)
        values[loss] = float(value.detach())
        norms[loss] = float(torch.autograd.grad(value, head)[0].double().norm())
    close(values["tv"], 1 - 1.25e-4, 1e-7)
    close(values["lk_alpha"], 8.987197, 1e-5)
    close(norms["kl"], 0.499969, 1e-6)
    close(norms["tv"], 6.24961e-5, 1e-9)
    close(norms["lk_alpha"], 0.499969, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_overlap_that_underflows(dtype: torch.dtype) -> None:
    out = one_row("lk_alpha", logs((0.0, 0.5, 0.5)), (200.0, 0.0, 0.0), dtype=dtype)
    close(out.value, 199.306854, 2e-5)
    close(out.gradient_KND, (1.0, -0.5, -0.5), 1e-5)
    for loss in LOSSES:
        again = one_row(loss, logs((0.0, 0.5, 0.5)), (200.0, 0.0, 0.0), token=1, dtype=dtype)
        assert math.isfinite(again.value)
        assert again.gradient_KND.isfinite().all()


@pytest.mark.parametrize("gap", [60.0, 95.0, 120.0, 700.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_verifier_mass_on_the_draft_vocabulary_that_underflows(loss: LossName, gap: float) -> None:
    """The verifier is all but certain of a token outside D; p~ is still a distribution."""
    target = (gap, 0.0, -1.0)
    out = one_row(loss, target, (0.5, 1.0), [1, 2], token=1, dtype=torch.float32)
    assert math.isfinite(out.value)
    assert out.measures_MKN.isfinite().all()
    wide = one_row("kl", (0.0, 1.0, 0.0), (0.5, 1.0), [1, 2])
    # float32 holds log p to one part in 10^7 of the gap.
    close(out.measure("kl"), float(wide.measure("kl")), 1e-5 + 1e-7 * gap)
    # min(p, q) is p on all of D: nothing that the drafter could change.
    want = {"kl": wide, "ce": one_row("ce", target, (0.5, 1.0), [1, 2], token=1)}.get(loss)
    if loss == "lk_hybrid":  # alpha 0: lambda 1
        want = wide
    expected = want.gradient_KND.squeeze().tolist() if want else [0.0, 0.0]
    close(out.gradient_KND, expected, 1e-6 + 1e-7 * gap)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_distributions(dtype: torch.dtype) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    for loss in (*LOSSES[:3], "tv"):
        out = one_row(loss, logits, logits - 4.0, dtype=dtype)
        close(out.value, 0.0, 1e-6)
        close(out.measure("alpha"), 1.0, 1e-6)
        if loss == "kl":
            assert out.gradient_KND.abs().max() < 1e-6
        # Exact ties: the sub-gradient is zero. (Ties spoiled by rounding have any of them.)
        out = one_row(loss, torch.zeros(8), torch.zeros(8), dtype=dtype)
        assert out.gradient_KND.abs().max() < 1e-7


def test_a_certain_verifier_makes_lk_the_cross_entropy() -> None:
    target = torch.full((8,), -math.inf)
    target[3] = 0.0
    lk = one_row("lk_alpha", target, torch.zeros(8), token=3)
    kl = one_row("kl", target, torch.zeros(8), token=3)
    ce = one_row("ce", target, torch.zeros(8), token=3)
    for out in (lk, kl, ce):
        close(out.value, 2.079442)
        close(out.gradient_KND, [1 / 8 - (n == 3) for n in range(8)])


LOGITS = st.lists(st.floats(-6, 6), min_size=6, max_size=6)


@settings(max_examples=100, deadline=None)
@given(target=LOGITS, draft=LOGITS, size=st.integers(2, 6))
def test_identities_and_bounds(target: list[float], draft: list[float], size: int) -> None:
    outs = {
        loss: one_row(loss, target, draft[:size], list(range(size)), token=1) for loss in LOSSES
    }
    out = outs["kl"]
    alpha, mass = float(out.measure("alpha")), float(out.measure("mass"))
    assert 0 <= alpha <= mass + 1e-12
    p = torch.softmax(torch.tensor(target, dtype=torch.float64), 0)[:size]
    q = torch.softmax(torch.tensor(draft[:size], dtype=torch.float64), 0)
    close(mass, float(p.sum()), 1e-12)
    close((1 + mass) / 2 - alpha, 0.5 * float((p - q).abs().sum()), 1e-12)
    assert outs["lk_alpha"].value >= outs["tv"].value - 1e-12
    if size == 6:
        assert outs["tv"].value <= math.sqrt(max(outs["kl"].value, 0.0) / 2) + 1e-7
        swapped = one_row("tv", draft, target)
        close(float(swapped.measure("alpha")), alpha, 1e-12)
    assert outs["kl"].value >= -1e-12
    for loss, other in outs.items():
        assert abs(float(other.gradient_KND.sum())) < 1e-12, loss
    assert outs["lk_alpha"].gradient_KND.abs().sum() <= 2 + 1e-12
    assert outs["tv"].gradient_KND.abs().max() <= 0.25 + 1e-12


def test_flat_distributions_overlap_by_the_share_of_the_vocabulary() -> None:
    out = one_row("tv", torch.zeros(10), torch.zeros(4), [2, 3, 5, 7])
    close(out.measure("alpha"), 0.4)
