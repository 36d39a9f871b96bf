"""The law of tau by the amount of data: its intervals hold what they say, and make sense."""

import numpy as np
import pytest

from specpipe.stages.train.learning_curve.power_law import TauPoint, fit_power_laws

ERROR = 0.01


def drawn(
    rng: np.random.Generator, amounts: list[float], noise: float, most: float
) -> tuple[list[TauPoint], list[float]]:
    """Points of a random law at the amounts, as runs and evaluations show them; tau at 2 and 4."""
    amounts_N = np.array([*amounts, 2.0, 4.0])
    law_N = np.zeros(1)
    while law_N.min() < 1.1:
        ceiling = rng.uniform(1.5, most)
        exponent = np.exp(rng.uniform(np.log(0.1), np.log(1.2)))
        law_N = ceiling - (ceiling - rng.uniform(1.25, ceiling)) * amounts_N**-exponent
    seen_N = law_N * (1 + noise * rng.standard_normal(len(law_N)))
    seen_N += ERROR * rng.standard_normal(len(law_N))
    points = [TauPoint(n, tau, ERROR) for n, tau in zip(amounts, seen_N, strict=False)]
    return points, seen_N[len(amounts) :].tolist()


@pytest.mark.parametrize("amounts", [[0.25, 0.5, 1.0], [0.125, 0.25, 0.5, 1.0]])
@pytest.mark.parametrize("noise", [0.006, 0.016])
def test_intervals_hold_nineteen_of_twenty(amounts: list[float], noise: float) -> None:
    """Of random laws and noises as runs have them; of so many draws 0.9 is 2.5 errors away."""
    rng = np.random.default_rng(7)
    held, shifts = [], []
    for _ in range(120):
        points, truths = drawn(rng, amounts, noise, most=4.0)
        laws = fit_power_laws(points, 3)
        for times, truth in zip((2.0, 4.0), truths, strict=True):
            found = laws.predicted(times)
            held.append(found.low <= truth <= found.high)
            shifts.append(found.middle - truth)
    assert np.mean(held) > 0.9
    # Neither hopeful nor gloomy.
    assert abs(np.mean(shifts)) < 0.03


def test_more_data_is_never_expected_to_bring_less_nor_more_than_there_is() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        points, _ = drawn(rng, [0.25, 0.5, 1.0], 0.03, most=3.0)
        laws = fit_power_laws(points, 2)
        intervals = [laws.predicted(times) for times in (1.0, 2.0, 4.0, 1e6)]
        for name in ("low", "middle", "high"):
            values = [getattr(one, name) for one in intervals]
            assert values == sorted(values)
            assert values[0] >= 1
            assert values[-1] <= 3


def test_a_steep_law_is_followed_and_a_flat_one_stays_flat() -> None:
    steep = [TauPoint(n, 3.0 - 0.6 * n**-0.5, 0.003) for n in (0.125, 0.25, 0.5, 1.0)]
    found = fit_power_laws(steep, 5).predicted(4.0)
    assert found.low < 2.7 < found.high
    assert found.middle == pytest.approx(2.7, abs=0.1)
    flat = [TauPoint(n, 2.0, 0.003) for n in (0.125, 0.25, 0.5, 1.0)]
    found = fit_power_laws(flat, 5).predicted(4.0)
    assert found.middle == pytest.approx(2.0, abs=0.04)


def test_points_off_any_law_make_wider_intervals() -> None:
    def width(taus: list[float]) -> float:
        points = [TauPoint(n, tau, 0.005) for n, tau in zip((1, 2, 4, 8), taus, strict=True)]
        found = fit_power_laws(points, 3).predicted(16)
        return found.high - found.low

    assert width([1.6, 1.9, 1.7, 2.0]) > 1.5 * width([1.6, 1.75, 1.88, 2.0])


def test_the_same_points_say_the_same() -> None:
    points = [TauPoint(n, tau, 0.01) for n, tau in ((1e5, 1.6), (2e5, 1.8), (4e5, 1.95))]
    first, again = (fit_power_laws(points, 3).predicted(8e5) for _ in range(2))
    assert first == again
