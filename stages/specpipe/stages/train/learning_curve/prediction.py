"""From tau at a few amounts of data: what more data is expected to bring, or why nobody can say."""

from collections.abc import Sequence

import numpy as np

from specpipe.schemas.records.learning_curve import CurvePoint, Expected, LearningCurve
from specpipe.stages.acceptance.replay import Z_95
from specpipe.stages.train.learning_curve.power_law import (
    Interval,
    PowerLaws,
    TauPoint,
    fit_power_laws,
)

FEWEST_POINTS = 3
TIMES = (2, 4)
"""Of the data."""
WIDEST = 0.25
"""An interval at twice the data that is wider than this part of tau says nothing."""
RUN_NOISE = 0.016
"""What tau differs by between runs of other seeds, as a share of it."""
LEAST_GAIN = 0.1
"""Tokens per round over an untrained drafter, below which nothing was learned."""
_LAW_POINTS = 25


def predicted(
    points: Sequence[CurvePoint], untrained: float, num_draft_tokens: int, *, is_greedy: bool
) -> LearningCurve:
    """The curve of these points, by amount; `untrained` is tau before the first step."""
    points = _by_amount(points)
    # Before a drafter has learned anything tau stands still, and no law has begun.
    learned = [point for point in points if point.tau >= untrained + LEAST_GAIN]
    because = _carry_no_law(points, learned, untrained)
    laws = None if because else _fit(learned, num_draft_tokens)
    expected = [] if laws is None else [_expected(laws, points, times) for times in TIMES]
    if expected and expected[0].high - expected[0].low > WIDEST * points[-1].tau:
        because = (
            f"at twice the data anything from tau {expected[0].low:.2f} to {expected[0].high:.2f}"
            " fits these points; evaluate on more held-out text, or dump more text"
        )
    held_back = None
    if laws is not None and len(learned) > FEWEST_POINTS:
        whole = points[-1].num_tokens
        held_back = _stored(_fit(learned[:-1], num_draft_tokens).predicted(whole), whole)
    return LearningCurve(
        num_draft_tokens=num_draft_tokens,
        is_greedy=is_greedy,
        points=points,
        answer="open" if because else "predicted",
        because=because,
        expected=expected,
        held_back=held_back,
        law=[] if laws is None else _law(laws, points),
    )


def _by_amount(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Of shares that hold the same samples, the largest."""
    return sorted({p.num_tokens: p for p in sorted(points, key=_fraction)}.values(), key=_amount)


def _fraction(point: CurvePoint) -> float:
    return point.data_fraction


def _amount(point: CurvePoint) -> int:
    return point.num_tokens


def _carry_no_law(
    points: Sequence[CurvePoint], learned: Sequence[CurvePoint], untrained: float
) -> str:
    """Why no law goes through the points; empty where one may."""
    if len(points) < FEWEST_POINTS:
        return (
            f"a law needs {FEWEST_POINTS} amounts of data, and the shares of so few samples came to"
            f" {len(points)}; dump more text"
        )
    last, best = points[-1], max(points, key=lambda point: point.tau)
    if len(learned) < FEWEST_POINTS:
        return (
            f"{len(points) - len(learned)} of {len(points)} runs have learned next to nothing (tau"
            f" {points[0].tau:.2f} at {points[0].num_tokens:,} tokens, untrained {untrained:.2f});"
            " train for more steps, or dump more text"
        )
    noise = 3 * float(np.hypot(*(np.hypot(_error(p), RUN_NOISE * p.tau) for p in (last, best))))
    if best.tau - last.tau > noise:
        return (
            f"tau falls with more data, from {best.tau:.2f} at {best.num_tokens:,} tokens to"
            f" {last.tau:.2f} at {last.num_tokens:,}: that is not for want of data; look at the"
            " steps and the learning rate"
        )
    return ""


def _error(point: CurvePoint) -> float:
    return (point.tau_high - point.tau_low) / (2 * Z_95)


def _fit(points: Sequence[CurvePoint], num_draft_tokens: int) -> PowerLaws:
    return fit_power_laws(
        [TauPoint(point.num_tokens, point.tau, _error(point)) for point in points],
        num_draft_tokens,
    )


def _expected(laws: PowerLaws, points: Sequence[CurvePoint], times: int) -> Expected:
    amount = times * points[-1].num_tokens
    return _stored(laws.predicted(amount), amount)


def _law(laws: PowerLaws, points: Sequence[CurvePoint]) -> list[Expected]:
    """The law from the smallest amount to the largest that is predicted."""
    first, last = points[0].num_tokens, max(TIMES) * points[-1].num_tokens
    amounts = np.geomspace(first, last, _LAW_POINTS).round().astype(int).tolist()
    return [_stored(laws.expected(amount), amount) for amount in amounts]


def _stored(interval: Interval, num_tokens: int) -> Expected:
    low, middle, high = (
        round(value, 4) for value in (interval.low, interval.middle, interval.high)
    )
    return Expected(num_tokens=num_tokens, tau=middle, low=low, high=high)
