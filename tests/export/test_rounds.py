"""Rounds of a simulated engine, whose acceptance is known, against the replay of its outputs."""

import numpy as np
import numpy.typing as npt
import pytest

from specpipe.schemas.errors import ValidationError
from specpipe.stages.drafter.replay import ReplaySpan, expected_rounds
from specpipe.stages.export.rounds import compare, measured_rounds

K, TOKENS, OUTPUTS = 3, 40, 400


def simulate(
    accept_RK: npt.NDArray[np.float64], num_tokens: int, num_drafts: int, rng: np.random.Generator
) -> list[int]:
    """Accepted drafts of every round, until the output is full, as vLLM counts them."""
    rounds, start = [], 0
    while start < num_tokens - 1:
        accepted = 0
        # Beyond the output's end the engine drafts on; what it accepts there is counted by it.
        while accepted < num_drafts and rng.random() < (
            accept_RK[start, accepted] if start + accepted + 1 < num_tokens else 0.5
        ):
            accepted += 1
        rounds.append(accepted)
        start += accepted + 1
    return rounds


@pytest.fixture(scope="module")
def outputs() -> tuple[list[ReplaySpan], list[list[int]]]:
    rng = np.random.default_rng(0)
    spans, rounds = [], []
    for sample in range(OUTPUTS):
        accept_RK = rng.beta(1, 1, size=(TOKENS - 1, K))
        spans.append(ReplaySpan(accept_RK, TOKENS, sample))
        rounds.append(simulate(accept_RK, TOKENS, K, rng))
    return spans, rounds


def test_replay_of_a_simulated_engine_passes(
    outputs: tuple[list[ReplaySpan], list[list[int]]],
) -> None:
    spans, rounds = outputs
    measured = measured_rounds(rounds, [TOKENS] * OUTPUTS, K)
    found = compare(measured, expected_rounds(spans, K), tolerance=0.02, or_within_error=True)
    assert found.passed
    assert abs(found.relative_difference) < 1.5 * found.relative_error_95
    assert found.relative_error_95 < 0.02
    assert found.num_rounds_measured == pytest.approx(found.num_rounds_replayed, rel=0.02)


def test_another_drafter_fails(outputs: tuple[list[ReplaySpan], list[list[int]]]) -> None:
    spans, rounds = outputs
    measured = measured_rounds(rounds, [TOKENS] * OUTPUTS, K)
    worse = [ReplaySpan(s.accept_RK * 0.9, s.num_tokens, s.sample) for s in spans]
    found = compare(measured, expected_rounds(worse, K), tolerance=0.02, or_within_error=True)
    assert not found.passed


def test_acceptance_per_position_fails_alone() -> None:
    # About the same tau from other positions: 1 + 0.5 + 0 against 1 + 0.25 + 0.25.
    ours = measured_rounds([[1, 0] * 13 + [0]] * 4, [41] * 4, 2)
    theirs = measured_rounds([[2, 0, 0, 0] * 6 + [2, 0]] * 4, [41] * 4, 2)
    found = compare(ours, theirs, tolerance=0.05, or_within_error=False)
    assert abs(found.relative_difference) < 0.05
    assert not found.passed


def test_only_whole_rounds_count() -> None:
    # Tokens 0 1 2 3 4 5; rounds start at 0 (accepts 2), 3 (accepts 1), 5. K = 2.
    found = measured_rounds([[2, 1]], [6], 2)
    assert found.rounds_B.tolist() == [2]
    assert found.accepted_BK.tolist() == [[2, 1]]
    # With K = 3 the round at 3 would draft token 6.
    assert measured_rounds([[2, 1]], [6], 3).rounds_B.tolist() == [1]


def test_rounds_that_do_not_make_the_output() -> None:
    with pytest.raises(ValidationError, match="output 0 has 9 tokens"):
        measured_rounds([[2, 1]], [9], 2)
    with pytest.raises(ValidationError, match="output 0 has 3 tokens"):
        measured_rounds([[2, 1]], [3], 2)
