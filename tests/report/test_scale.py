"""Ticks that a person expects on an axis."""

import pytest

from specpipe.stages.report.scale import scale_of, tick_label


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0.0019, 0.03), ["0.002", "0.005", "0.01", "0.02"]),
        # Close together: even steps.
        ((0.0035, 0.00467), ["0.0035", "0.004", "0.0045"]),
        ((0.0051, 0.0094), ["0.006", "0.008"]),
    ],
)
def test_learning_rates_have_round_ticks(values: tuple[float, float], labels: list[str]) -> None:
    scale = scale_of(values, "log10", 0, 100)
    assert [tick_label(tick) for tick in scale.ticks] == labels
    assert scale.at(values[0]) == 0
    assert scale.at(values[1]) == pytest.approx(100)
