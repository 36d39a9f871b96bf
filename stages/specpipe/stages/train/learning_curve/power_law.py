"""A power law through tau at several amounts of data, and what it predicts for more.

tau(n) = tau_last + gap * (1 - (n / n_last)**-exponent), n_last being the largest amount: the law
rises to tau_last + gap. A few points do not fix three parameters, so the law is not one curve but
many, each weighed by how well it goes through the points (the posterior on a grid) and drawn by its
weight. A prediction is a quantile of what the drawn curves say, with the noise of one more run on
top: it is as wide as the points leave it.

Legend: N points, G laws of the grid, S noises, L drawn laws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

EXPONENTS = np.geomspace(0.05, 2.0, 24)
"""From nearly a straight line over log n to a curve that is flat after one doubling."""
NOISES_S = np.array([0.006, 0.01, 0.016, 0.025, 0.04, 0.064])
"""By how much a run lies off its law, as a share of tau: runs that differ in their seed alone do,
and so does any law off the truth."""
NOISE_WEIGHTS_S = np.array([0.15, 0.3, 0.3, 0.15, 0.07, 0.03])
"""Before any point is seen: seeds come to 1 to 2 %. Points that fit no law speak for more."""
NUM_DRAWN = 10_000
_NUM_GAPS = 120


@dataclass(frozen=True, slots=True)
class TauPoint:
    """tau of a drafter that was trained on so much data."""

    amount: float
    tau: float
    error: float
    """Standard error of tau, over the samples that it was measured on."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and the interval that holds the value with a probability of 95 %."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PowerLaws:
    """Laws as likely as the points make them."""

    last_amount: float
    most: float
    """No tau is larger: K + 1."""
    at_last_L: Array
    gap_L: Array
    exponent_L: Array
    noise_L: Array
    """How far one run lies off its law: the same at every amount, so that intervals only rise."""

    def expected(self, amount: float) -> Interval:
        """The law itself at this amount."""
        return self._interval(self._tau_L(amount))

    def predicted(self, amount: float) -> Interval:
        """What one run on this amount will show."""
        return self._interval(self._tau_L(amount) + self.noise_L)

    def _tau_L(self, amount: float) -> Array:
        rest_L = (amount / self.last_amount) ** -self.exponent_L
        tau_L: Array = self.at_last_L + self.gap_L * (1 - rest_L)
        return tau_L

    def _interval(self, tau_L: Array) -> Interval:
        low, middle, high = np.clip(np.quantile(tau_L, (0.025, 0.5, 0.975)), 1.0, self.most)
        return Interval(float(middle), float(low), float(high))


def fit_power_laws(points: Sequence[TauPoint], num_draft_tokens: int) -> PowerLaws:
    """Weigh the laws by the points, and draw: the same laws from the same points.

    A point's variance is that of its measurement and that of a run. Beforehand every height at the
    largest amount, every gap up to K + 1 and every exponent (in its logarithm) count alike.
    """
    amount_N = np.array([point.amount for point in points])
    tau_N = np.array([point.tau for point in points])
    error_N = np.array([point.error for point in points])
    last = int(amount_N.argmax())
    most = num_draft_tokens + 1.0
    gaps = np.concatenate([[0.0], np.geomspace(0.002, most - 1.0, _NUM_GAPS - 1)])
    exponent_G, gap_G = (one.ravel() for one in np.meshgrid(EXPONENTS, gaps, indexing="ij"))
    # The height that each point speaks for; for given gap and exponent it is distributed normally.
    rest_GN = (amount_N / amount_N[last]) ** -exponent_G[:, None]
    height_GN = tau_N - gap_G[:, None] * (1 - rest_GN)
    precision_SN = 1 / (error_N**2 + (NOISES_S[:, None] * tau_N) ** 2)
    total_S = precision_SN.sum(axis=1)
    height_SG = precision_SN @ height_GN.T / total_S[:, None]
    off_SG = precision_SN @ (height_GN**2).T - total_S[:, None] * height_SG**2
    # The gaps lie closer together where they are small: each stands for its part of the line.
    log_SG = -0.5 * off_SG + np.log(np.interp(gap_G, gaps, np.gradient(gaps)))
    log_SG += (
        np.log(NOISE_WEIGHTS_S) + 0.5 * np.log(precision_SN).sum(axis=1) - 0.5 * np.log(total_S)
    )[:, None]
    log_SG[height_SG + gap_G > most] = -np.inf
    weights = np.exp(log_SG - log_SG.max()).ravel()
    # Evenly spread through the weights: fewer draws do than at random.
    places = (np.arange(NUM_DRAWN) + 0.5) / NUM_DRAWN
    cell = np.searchsorted(np.cumsum(weights) / weights.sum(), places).clip(max=weights.size - 1)
    noise, law = np.unravel_index(cell, log_SG.shape)
    off_height_L, off_run_L = np.random.default_rng(0).standard_normal((2, NUM_DRAWN))
    height_L = height_SG[noise, law] + off_height_L / np.sqrt(total_S[noise])
    return PowerLaws(
        last_amount=float(amount_N[last]),
        most=most,
        at_last_L=height_L.clip(1.0, most - gap_G[law]),
        gap_L=gap_G[law],
        exponent_L=exponent_G[law],
        noise_L=off_run_L * np.hypot(NOISES_S[noise] * tau_N[last], error_N[last]),
    )
