"""What is said of more data, and when nothing can be said."""

import re

import pytest

from specpipe.schemas.records.learning_curve import CurvePoint, LearningCurve
from specpipe.stages.train.learning_curve.prediction import predicted

TOKENS = 80_000


def curve(taus: dict[float, float], untrained: float = 1.04, error: float = 0.02) -> LearningCurve:
    points = [
        CurvePoint(
            data_fraction=share,
            num_tokens=round(TOKENS * share),
            num_steps=100,
            tau=tau,
            tau_low=tau - error,
            tau_high=tau + error,
        )
        for share, tau in taus.items()
    ]
    return predicted(points, untrained, 3, is_greedy=False)


def test_twice_and_four_times_with_their_tokens_and_intervals() -> None:
    found = curve({0.125: 1.70, 0.25: 1.88, 0.5: 2.03, 1.0: 2.15})
    assert found.answer == "predicted"
    twice, four_times = found.expected
    assert (twice.num_tokens, four_times.num_tokens) == (2 * TOKENS, 4 * TOKENS)
    assert 2.15 < twice.tau < four_times.tau < 2.45
    assert found.in_words() == (
        f"with twice the data (160,000 tokens) expect tau {twice.in_words()};"
        f" with four times {four_times.in_words()}"
    )
    assert twice.in_words() == f"{twice.tau:.2f} [{twice.low:.2f}, {twice.high:.2f}]"
    # From the three smaller ones, the whole.
    assert found.held_back is not None
    assert found.held_back.num_tokens == TOKENS
    assert found.is_as_predicted
    assert str(found.check_in_words()).endswith("came to 2.15, inside that interval")
    assert LearningCurve.model_validate_json(found.to_json()) == found


def test_a_whole_that_the_shares_did_not_predict_is_said_to_be_none() -> None:
    found = curve({0.125: 1.50, 0.25: 1.60, 0.5: 1.70, 1.0: 2.60})
    assert found.is_as_predicted is False
    assert str(found.check_in_words()).endswith("came to 2.60, outside that interval")


def test_points_are_taken_by_amount_and_the_same_samples_once() -> None:
    found = curve({1.0: 2.15, 0.5: 2.03, 0.25: 1.88})
    assert [point.data_fraction for point in found.points] == [0.25, 0.5, 1.0]
    assert found.held_back is None
    assert found.check_in_words() is None
    twins = curve({0.5: 2.03, 0.500001: 2.04, 1.0: 2.15})
    assert [point.tau for point in twins.points] == [2.04, 2.15]


@pytest.mark.parametrize(
    ("taus", "because"),
    [
        ({0.5: 1.9, 1.0: 2.0}, r"a law needs 3 amounts of data, .* came to 2; dump more text"),
        (
            {0.125: 1.05, 0.25: 1.05, 0.5: 1.6, 1.0: 1.9},
            r"2 of 4 runs have learned next to nothing .tau 1.05 at 10,000 tokens, untrained 1.04",
        ),
        ({0.25: 2.3, 0.5: 2.1, 1.0: 1.9}, r"tau falls .* from 2.30 at 20,000 tokens to 1.90 at"),
    ],
)
def test_what_no_law_goes_through(taus: dict[float, float], because: str) -> None:
    found = curve(taus)
    assert (found.answer, found.expected, found.law) == ("open", [], [])
    assert found.in_words().startswith("cannot tell: ")
    assert re.search(because, found.in_words())


def test_a_share_that_has_learned_nothing_is_not_on_the_law() -> None:
    found = curve({0.0625: 1.05, 0.125: 1.70, 0.25: 1.88, 0.5: 2.03, 1.0: 2.15})
    assert len(found.points) == 5
    assert found.expected == curve({0.125: 1.70, 0.25: 1.88, 0.5: 2.03, 1.0: 2.15}).expected


def test_points_that_leave_everything_open() -> None:
    found = curve({0.25: 1.5, 0.5: 1.9, 1.0: 2.1}, error=0.4)
    assert found.answer == "open"
    assert "cannot tell: at twice the data anything from tau" in found.in_words()
    # Still on the page, with its width.
    assert found.expected


def test_tau_that_stands_still_is_predicted_to_do_so() -> None:
    found = curve({0.125: 2.0, 0.25: 2.0, 0.5: 2.0, 1.0: 2.0})
    assert found.answer == "predicted"
    assert [one.tau for one in found.expected] == [pytest.approx(2.0, abs=0.05)] * 2
