"""Rounds of a simulated engine, whose acceptance is known, against the replay of its outputs."""

import numpy as np
import numpy.typing as npt
import pytest

from specpipe.schemas.errors import ValidationError
from specpipe.stages.acceptance.evidence import FALSE_ALARM
from specpipe.stages.acceptance.replay import ReplaySpan, expected_rounds
from specpipe.stages.validate.serve.rounds import compare, measured_rounds

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
    found = compare(measured, expected_rounds(spans, K), spans, tolerance=0.0)
    assert found.passed
    assert min(found.chance or 0, *found.acceptance_chance) > 0.1
    assert abs(found.relative_difference) < 1.5 * found.relative_error_95
    assert found.relative_error_95 < 0.02
    assert found.num_rounds_measured == pytest.approx(found.num_rounds_replayed, rel=0.02)


def test_another_drafter_fails(outputs: tuple[list[ReplaySpan], list[list[int]]]) -> None:
    spans, rounds = outputs
    measured = measured_rounds(rounds, [TOKENS] * OUTPUTS, K)
    worse = [ReplaySpan(s.accept_RK * 0.9, s.num_tokens, s.sample) for s in spans]
    found = compare(measured, expected_rounds(worse, K), worse, tolerance=0.02)
    assert not found.passed
    assert found.chance is not None
    assert found.chance < 1e-9


def test_acceptance_per_position_fails_alone() -> None:
    """About the same tau from other positions: 1 + 0.5 + 0 against 1 + 0.25 + 0.25."""
    ours = measured_rounds([[1, 0] * 13 + [0]] * 40, [41] * 40, 2)
    spans = [ReplaySpan(np.tile([0.25, 1.0], (40, 1)), 41, sample) for sample in range(40)]
    found = compare(ours, expected_rounds(spans, 2), spans, tolerance=0.05)
    assert abs(found.relative_difference) < 0.05
    assert found.acceptance_chance[1] < FALSE_ALARM
    assert not found.passed


def test_a_small_set_is_no_failure() -> None:
    """Two outputs of ten tokens, half of the drafts accepted where two thirds are predicted."""
    spans = [ReplaySpan(np.full((9, 1), 2 / 3), 10, sample) for sample in range(2)]
    measured = measured_rounds([[1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 0, 0]], [10, 10], 1)
    found = compare(measured, expected_rounds(spans, 1), spans, tolerance=0.02)
    assert found.relative_difference > 0.1
    assert found.passed


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
