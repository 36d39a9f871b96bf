"""The replay against enumeration of all outcomes, and against real rejection-sampling decoding."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.stages.acceptance.replay import ReplaySpan, expected_rounds, replay
from tests.acceptance.markov import decode, sticky_toy, write_texts

Array = npt.NDArray[np.float64]


def enumerate_outcomes(accept_RK: Array, num_tokens: int, num_drafts: int) -> tuple[float, Array]:
    """Expected rounds, and rounds with the first k accepted, over all 2^(R K) outcomes."""
    num_starts = len(accept_RK)
    rounds, accepted = 0.0, np.zeros(num_drafts)
    for bits in itertools.product([0, 1], repeat=num_starts * num_drafts):
        outcome = np.array(bits).reshape(num_starts, num_drafts)
        chances = np.where(outcome == 1, accept_RK[:, :num_drafts], 1 - accept_RK[:, :num_drafts])
        chance = float(np.prod(chances))
        at = 0
        while at + num_drafts <= num_tokens - 1:  # the last draft is a token of the span
            taken = 0
            while taken < num_drafts and outcome[at, taken]:
                taken += 1
            rounds += chance
            accepted[:taken] += chance
            at += taken + 1
    return rounds, accepted


@settings(max_examples=25, deadline=None)
@given(data=st.data(), num_tokens=st.integers(1, 6), num_drafts=st.integers(1, 3))
def test_every_outcome_is_counted_with_its_chance(
    data: st.DataObject, num_tokens: int, num_drafts: int
) -> None:
    if (num_tokens - 1) * num_drafts > 10:
        num_drafts = 2
    chances = st.floats(0, 1)
    size = (num_tokens - 1) * num_drafts
    drawn = data.draw(st.lists(chances, min_size=size, max_size=size))
    accept = np.array(drawn).reshape(num_tokens - 1, num_drafts)
    counts = expected_rounds([ReplaySpan(accept, num_tokens, sample=0)], num_drafts)
    rounds, accepted = enumerate_outcomes(accept, num_tokens, num_drafts)
    np.testing.assert_allclose(counts.rounds_B, [rounds], atol=1e-12)
    np.testing.assert_allclose(counts.accepted_BK, [accepted], atol=1e-12)
    np.testing.assert_allclose(counts.tokens_B, [rounds + accepted.sum()], atol=1e-12)


def test_spans_together_are_as_apart() -> None:
    rng = np.random.default_rng(3)
    spans = [
        ReplaySpan(rng.random((num_tokens - 1, 4)), num_tokens, sample=n)
        for n, num_tokens in enumerate([1, 9, 2, 30, 4, 5])
    ]
    for num_drafts in range(1, 5):
        together = expected_rounds(spans, num_drafts)
        for n, span in enumerate(spans):
            alone = expected_rounds([span], num_drafts)
            np.testing.assert_allclose(together.rounds_B[n], alone.rounds_B[0], atol=1e-13)
            np.testing.assert_allclose(together.accepted_BK[n], alone.accepted_BK[0], atol=1e-13)


def test_what_lies_beyond_the_span_is_not_read() -> None:
    rng = np.random.default_rng(4)
    accept = rng.random((7, 3))
    other = accept.copy()
    for r, k in itertools.product(range(7), range(3)):
        if r + k + 1 > 7:
            other[r, k] = 1 - other[r, k]
    assert not np.array_equal(accept, other)
    one = replay([ReplaySpan(accept, 8, 0), ReplaySpan(rng.random((20, 3)), 21, 1)], 3, exact=True)
    rng = np.random.default_rng(4)
    rng.random((7, 3))
    two = replay([ReplaySpan(other, 8, 0), ReplaySpan(rng.random((20, 3)), 21, 1)], 3, exact=True)
    assert one == two


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 7, 40])
def test_greedy_identities(num_tokens: int) -> None:
    for value in (0.0, 1.0):
        span = ReplaySpan(np.full((num_tokens - 1, 3), value), num_tokens, 0)
        curve = replay([span], 3, exact=True)
        for num_drafts in (1, 2, 3):
            step = num_drafts + 1 if value else 1
            starts = range(0, max(num_tokens - num_drafts, 0), step)
            assert curve.num_rounds[num_drafts - 1] == len(starts)
            assert curve.tau[num_drafts - 1] == (step if starts else 1)
            assert (
                curve.acceptance_per_position[num_drafts - 1]
                == [value if starts else 0.0] * num_drafts
            )


def test_constant_conditionals_give_the_closed_form() -> None:
    """w = .8, .7, .6 whatever the start: tau = 1 + .8 + .56 + .336, however long the text."""
    spans = [
        ReplaySpan(np.tile([0.8, 0.7, 0.6], (num_tokens - 1, 1)), num_tokens, n)
        for n, num_tokens in enumerate([4, 5, 12, 100])
    ]
    curve = replay(spans, 3, exact=False)
    np.testing.assert_allclose(curve.tau, [1.8, 2.36, 2.696], atol=1e-12)
    np.testing.assert_allclose(curve.acceptance_per_position[2], [0.8, 0.56, 0.336], atol=1e-12)
    assert [len(per_position) for per_position in curve.acceptance_per_position] == [1, 2, 3]
    assert not curve.exact


def test_multiplicity_is_repetition() -> None:
    rng = np.random.default_rng(5)
    accepts = [rng.random((length - 1, 3)) for length in (5, 20, 9)]
    weights = [3.0, 1.0, 2.0]
    weighted = [
        ReplaySpan(accept, len(accept) + 1, n, weight)
        for n, (accept, weight) in enumerate(zip(accepts, weights, strict=True))
    ]
    repeated = [
        ReplaySpan(accept, len(accept) + 1, n)
        for n, (accept, weight) in enumerate(zip(accepts, weights, strict=True))
        for _ in range(int(weight))
    ]
    one, other = replay(weighted, 3, exact=True), replay(repeated, 3, exact=True)
    np.testing.assert_allclose(one.tau, other.tau, rtol=1e-13)
    np.testing.assert_allclose(one.num_rounds, other.num_rounds, rtol=1e-13)
    np.testing.assert_allclose(one.tau_low, other.tau_low, rtol=1e-12)
    np.testing.assert_allclose(one.tau_high, other.tau_high, rtol=1e-12)


def test_spans_of_one_sample_are_one_observation() -> None:
    """Splitting a sample's spans over samples changes the interval, not tau."""
    rng = np.random.default_rng(6)
    accepts = [rng.random((15, 2)) * (n % 5) / 4 for n in range(20)]
    apart = [ReplaySpan(accept, 16, n) for n, accept in enumerate(accepts)]
    # Alike spans in one sample: fewer, and more different, observations.
    joined = [ReplaySpan(accept, 16, n % 5) for n, accept in enumerate(accepts)]
    one, other = replay(apart, 2, exact=True), replay(joined, 2, exact=True)
    assert one.tau == other.tau
    assert other.tau_high[1] - other.tau_low[1] > 1.5 * (one.tau_high[1] - one.tau_low[1])


def test_nothing_to_replay() -> None:
    for spans in ([], [ReplaySpan(np.zeros((0, 3)), 1, 0)], [ReplaySpan(np.ones((1, 3)), 2, 0)]):
        curve = replay(spans, 3, exact=True)
        assert curve.num_rounds[1:] == [0.0, 0.0]
        assert curve.tau[1:] == [1.0, 1.0]
        assert all(math.isfinite(x) for x in (*curve.tau_low, *curve.tau_high))


def test_one_sample_says_nothing_of_the_spread_over_samples() -> None:
    rng = np.random.default_rng(8)
    spans = [ReplaySpan(rng.random((15, 2)), 16, 0) for _ in range(3)]
    curve = replay([*spans, ReplaySpan(np.ones((1, 2)), 2, 1)], 2, exact=True)
    assert curve.tau_low[1] == 1.0
    assert curve.tau_high[1] == 3.0
    assert 1 < curve.tau[1] < 3


@pytest.mark.parametrize("num_texts", [8, 40])
def test_the_interval_covers(num_texts: int) -> None:
    """95 % intervals over fresh sets of texts hold the true tau about 95 % of the time."""
    toy, rng, num_sets, num_tokens = sticky_toy(), np.random.default_rng(11), 400, 24
    texts = write_texts(toy, rng, num_texts * num_sets, num_tokens)
    spans = [ReplaySpan(accept, num_tokens, n) for n, accept in enumerate(toy.accept(texts))]
    truth = replay(spans, 3, exact=True).tau[2]
    covered = 0
    for n in range(num_sets):
        curve = replay(spans[n * num_texts : (n + 1) * num_texts], 3, exact=True)
        covered += curve.tau_low[2] <= truth <= curve.tau_high[2]
    assert 0.92 <= covered / num_sets <= 0.98


def test_replay_is_real_decoding() -> None:
    """tau and acceptance per position for K = 1..4 from one pass, within 3 sigma of decoding."""
    toy, rng = sticky_toy(), np.random.default_rng(12)
    num_texts, num_tokens, num_heads = 5000, 48, 4
    accept = toy.accept(write_texts(toy, rng, num_texts, num_tokens))
    curve = replay(
        [ReplaySpan(accept_RK, num_tokens, n) for n, accept_RK in enumerate(accept)],
        num_heads,
        exact=True,
    )
    for K in range(1, num_heads + 1):
        decoded = decode(toy, rng, num_texts, num_tokens, K)
        rounds, tokens = decoded.rounds_B, decoded.rounds_B + decoded.accepted_BK.sum(1)
        tau = tokens.sum() / rounds.sum()
        sigma_decode = np.sqrt(((tokens - tau * rounds) ** 2).sum()) / rounds.sum()
        sigma_replay = (curve.tau_high[K - 1] - curve.tau_low[K - 1]) / (2 * 1.96)
        assert sigma_replay < sigma_decode  # no noise of accepting and rejecting
        sigma = math.hypot(sigma_decode, sigma_replay)
        assert abs(curve.tau[K - 1] - tau) < 3 * sigma
        assert sigma < 0.015
        np.testing.assert_allclose(
            curve.acceptance_per_position[K - 1],
            decoded.accepted_BK.sum(0) / rounds.sum(),
            atol=4 * sigma,
        )
        # Starting rounds uniformly over the text is what is wrong with the simpler estimate.
        survival, uniform = toy.stationary_V, 1.0
        for k in range(K):
            survival = survival @ np.minimum(toy.target_VV, toy.draft_KVV[k])
            uniform += survival.sum()
        assert abs(uniform - tau) > 6 * sigma


def test_decoding_is_lossless() -> None:
    """The toy decoder itself: its texts have the target's statistics."""
    toy, rng = sticky_toy(), np.random.default_rng(13)
    decoded = decode(toy, rng, 20000, 12, 3).texts_Bn
    for texts in (decoded, write_texts(toy, rng, 20000, 12)):
        pairs = np.zeros((5, 5))
        np.add.at(pairs, (texts[:, :-1], texts[:, 1:]), 1)
        rates = pairs / pairs.sum(1, keepdims=True)
        np.testing.assert_allclose(rates, toy.target_VV, atol=0.012)
