"""The curve over draft tokens that follows from conditional acceptance rates."""

import pytest

from specpipe.schemas.records.metrics import sampling_metrics


def test_worked_example() -> None:
    metrics = sampling_metrics([0.8, 0.7, 0.6])
    assert metrics.acceptance_rate == [0.8, 0.7, 0.6]
    assert metrics.accepted_tokens == pytest.approx([0.8, 1.36, 1.696])
    assert metrics.number_of_tokens == pytest.approx([1.8, 2.36, 2.696])
    assert metrics.system_efficiency == pytest.approx([1.8, 1.18, 0.898667], abs=1e-6)
    assert metrics.draft_efficiency == pytest.approx([0.8, 0.68, 0.565333], abs=1e-6)


def test_survival_weighted_conditionals_give_the_mean_of_products() -> None:
    """Starts with alpha (.9, .9, .8) and (.5, .4, .3): 1.559, not the 1.405 of mean rates."""
    starts = [(0.9, 0.9, 0.8), (0.5, 0.4, 0.3)]
    rates, survival = [], [1.0, 1.0]
    for k in range(3):
        reached = [s * start[k] for s, start in zip(survival, starts, strict=True)]
        rates.append(sum(reached) / sum(survival))
        survival = reached
    assert rates == pytest.approx([0.7, 0.721429, 0.700990], abs=1e-6)
    assert sampling_metrics(rates).accepted_tokens[-1] == pytest.approx(1.559, abs=1e-12)
    mean_rates = [sum(start[k] for start in starts) / 2 for k in range(3)]
    assert sampling_metrics(mean_rates).accepted_tokens[-1] == pytest.approx(1.40525, abs=1e-12)


def test_published_curve() -> None:
    """A constant rate of .774461 makes 3.86 tokens of 7 drafts, bonus counted."""
    metrics = sampling_metrics([0.774461] * 7)
    assert metrics.number_of_tokens[-1] == pytest.approx(3.86, abs=1e-4)
    assert metrics.system_efficiency[-1] == pytest.approx(0.551429, abs=1e-5)


@pytest.mark.parametrize(("rate", "tokens"), [(0.0, [1.0, 1.0]), (1.0, [2.0, 3.0])])
def test_extremes(rate: float, tokens: list[float]) -> None:
    assert sampling_metrics([rate, rate]).number_of_tokens == tokens
