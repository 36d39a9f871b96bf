"""Chances by which honest engines would fail: against enumeration and against simulation."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specpipe.stages.acceptance.evidence import _log_mean, chance_of_differences
from specpipe.stages.acceptance.replay import ReplaySpan
from specpipe.stages.drafters.eagle3.proposal import PlainDrafter
from specpipe.stages.validate.drafted_text import TargetText, _accept
from specpipe.stages.validate.serve.capture import CapturedText, excess_chance, near_ties
from specpipe.stages.validate.serve.near_ties import LEAST_STEPS, near_tie_steps


def mean_by_enumeration(accept_RK: npt.NDArray[np.float64], factor_N: list[float]) -> float:
    """E[product of the factors of every whole round], over all outcomes of the draws."""
    num_starts, K = accept_RK.shape
    total = 0.0
    for bits in itertools.product([0, 1], repeat=num_starts * K):
        outcome_RK = np.array(bits).reshape(num_starts, K)
        product = float(np.prod(np.where(outcome_RK == 1, accept_RK, 1 - accept_RK)))
        at = 0
        while at + K < num_starts + 1:
            taken = 0
            while taken < K and outcome_RK[at, taken]:
                taken += 1
            product *= factor_N[taken]
            at += taken + 1
        total += product
    return total


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_mean_of_a_product_over_rounds(data: st.DataObject) -> None:
    K, num_starts = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 5))
    shares = st.lists(st.floats(0, 1), min_size=K, max_size=K)
    rows = data.draw(st.lists(shares, min_size=num_starts, max_size=num_starts))
    factors = data.draw(st.lists(st.floats(0.1, 5), min_size=K + 1, max_size=K + 1))
    accept_RK = np.array(rows).reshape(num_starts, K)
    span = ReplaySpan(accept_RK, num_starts + 1, 0)
    expected = 2 * np.log(mean_by_enumeration(accept_RK, factors))
    assert _log_mean([span, span], np.array(factors)) == pytest.approx(expected, abs=1e-9)


def test_long_spans_do_not_overflow() -> None:
    span = ReplaySpan(np.full((4000, 3), 0.9), 4001, 0)
    assert np.isfinite(_log_mean([span], np.exp(3.0 * np.arange(4))))


@pytest.mark.parametrize("num_outputs", [2, 60, 400])
def test_differences_of_either_sign(num_outputs: int) -> None:
    rng = np.random.default_rng(0)
    heavy = rng.standard_t(2, size=(200, num_outputs))
    assert sum(chance_of_differences(one) < 0.01 for one in heavy) <= 4
    assert chance_of_differences(np.zeros(num_outputs)) == 1
    shifted = chance_of_differences(np.abs(heavy[0]) + 1)
    assert (shifted < 1e-5) == (num_outputs > 17)  # 2 ** 17 signs


def drawn(num_tokens: int, temperature: float, rng: np.random.Generator) -> CapturedText:
    """Text of a target whose every token is drawn at `temperature`."""
    logits_SV = torch.from_numpy(rng.normal(0, 2, size=(num_tokens, 50))).float()
    drawn_S = torch.distributions.Categorical(logits=logits_SV / temperature).sample()
    logp_S = logits_SV.log_softmax(-1).gather(1, drawn_S[:, None])[:, 0]
    text = TargetText(drawn_S, [(0, num_tokens)], torch.zeros(num_tokens, 1, 1), logp_S)
    return CapturedText(text, logits_SV)


def test_text_of_the_target_has_no_excess() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for num_tokens in (1, 5, 200):
        honest = [excess_chance([drawn(num_tokens, 1.0, rng)]) for _ in range(200)]
        assert sum(chance < 0.01 for chance in honest) <= 4
    for temperature in (0.8, 1.25):
        assert excess_chance([drawn(3000, temperature, rng)]) < 1e-5
    assert excess_chance([drawn(5, 0.05, rng)]) > 1e-5  # five tokens say nothing


def test_near_ties_are_as_wide_as_the_text_shows() -> None:
    rng = np.random.default_rng(0)
    lead_S = rng.exponential(20, 6000)
    for error, limits in ((0.3, (4, 6)), (1.0, (5, 9)), (2.0, (9, 13))):
        num_others = int((rng.normal(0, error, 6000) > lead_S).sum())
        assert limits[0] <= near_tie_steps(lead_S, num_others) <= limits[1]
    assert near_tie_steps(np.zeros(0), 0) == LEAST_STEPS
    # A set that says nothing gets the widest; a lossy engine cannot widen it.
    assert 8 < near_tie_steps(lead_S[:32], 0) < 12
    assert near_tie_steps(lead_S, 3000) < 13


def test_near_ties_of_texts() -> None:
    """An output whose 40 tokens are all the second choice, by a fifth of a step."""
    logits_SV = torch.zeros(2000, 5)
    logits_SV[:, 0] = 1.0
    logits_SV[:40, 1] = 1.0 - 0.2 / 128
    ids_S = torch.zeros(2000, dtype=torch.int64)
    ids_S[:40] = 1
    text = TargetText(ids_S, [(0, 2000)], torch.zeros(2000, 1, 1), torch.zeros(2000))
    assert 8 < near_ties([CapturedText(text, logits_SV)], [2000]) < 13
    ids_S[:40] = 0
    assert near_ties([CapturedText(text, logits_SV)], [2000]) == LEAST_STEPS
    assert near_ties([CapturedText(text, logits_SV)], [0]) == LEAST_STEPS


class Stated(PlainDrafter):
    """A drafter whose hidden states are its logits."""

    def logits(self, hidden_NH: Tensor, step: int = 1) -> Tensor:
        return hidden_NH.clone()


def test_an_engine_may_break_the_drafters_ties() -> None:
    """The token leads by nothing, half a step of bfloat16, and much; it trails; it is foreign."""
    step = 2.0**-6
    hidden_1RD = torch.tensor(
        [[2.0, 2.0, 0], [2.0, 2.0 - step / 2, 0], [2.0, 0, 0], [0, 2.0, 0], [2.0, 0, 0]]
    )[None]
    drafter = Stated({}, {}, {}, torch.zeros(9, 4), torch.arange(3))
    tokens = torch.tensor([5, 0, 0, 0, 0, 0, 8])
    text = TargetText(tokens, [(1, 7)], torch.zeros(7, 1, 1), torch.zeros(7))
    sampled_R1, greedy_R1, chance_R1 = _accept(drafter, text, 1, 7, hidden_1RD)
    assert greedy_R1[:, 0].tolist() == [1, 1, 1, 0, 0]
    assert sampled_R1[4, 0] == 0
    expected = [0.5, 0.005 + 0.99 * 0.5987, 0.995, 0.005, 0.005]
    assert chance_R1[:, 0].tolist() == pytest.approx(expected, abs=1e-3)
