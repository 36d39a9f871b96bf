"""Verification rounds that an engine really had, beside those that the replay foretells.

Both sides count *whole* rounds only: a round that starts at token r of an output of n tokens drafts
the tokens r+1 .. r+K, and counts if r+K < n. vLLM's own counters also hold the last round of each
output, whose drafts reach beyond its end. The first token comes from the prompt's pass, without a
draft; every later one from a round.

Legend: B outputs, K draft tokens.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from specpipe.schemas.errors import ValidationError
from specpipe.stages.drafter.replay import Z_95, Rounds


class Comparison(BaseModel):
    """Measured against replayed, over the same texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rounds_measured: int
    num_rounds_replayed: float
    tau_measured: float
    tau_replayed: float
    relative_difference: float
    """(replayed - measured) / measured"""
    relative_error_95: float
    """95 % half-width of that difference: what the draws of acceptance alone can do."""
    acceptance_measured: list[float]
    """[k]: share of rounds whose first k drafts are accepted."""
    acceptance_replayed: list[float]
    acceptance_error_95: list[float]
    tolerance: float
    """Accepted difference: relative of tau, absolute of each acceptance."""
    or_within_error: bool
    """Whether a difference within its 95 % error is accepted too."""
    passed: bool


def measured_rounds(
    accepted_per_round: Sequence[Sequence[int]], num_tokens: Sequence[int], num_draft_tokens: int
) -> Rounds:
    """Whole rounds of each output; raises ValidationError where rounds and outputs disagree."""
    rounds_B = np.zeros(len(num_tokens))
    accepted_BK = np.zeros((len(num_tokens), num_draft_tokens))
    for b, (rounds, total) in enumerate(zip(accepted_per_round, num_tokens, strict=True)):
        start = 0
        for accepted in rounds:
            if start + num_draft_tokens < total:
                rounds_B[b] += 1
                accepted_BK[b, :accepted] += 1
            start += accepted + 1
        if not total <= start + 1 <= total + num_draft_tokens:
            raise ValidationError(
                f"output {b} has {total} tokens, but its rounds make {start + 1}: the engine's"
                " per-round counts cannot be trusted"
            )
    return Rounds(rounds_B, accepted_BK)


def compare(
    measured: Rounds, replayed: Rounds, *, tolerance: float, or_within_error: bool
) -> Comparison:
    """Whether tau and the acceptance per position agree.

    The error is that of the difference of two ratio estimators over the same outputs.
    """
    tau_measured, _ = _ratio(measured.tokens_B, measured.rounds_B)
    tau_replayed, _ = _ratio(replayed.tokens_B, replayed.rounds_B)
    tau_error = _difference_error(
        (measured.tokens_B, measured.rounds_B), (replayed.tokens_B, replayed.rounds_B)
    )
    relative = (tau_replayed - tau_measured) / tau_measured
    relative_error = tau_error / tau_measured
    rates_measured, rates_replayed, rate_errors = [], [], []
    passed = abs(relative) <= max(tolerance, relative_error if or_within_error else 0.0)
    for k in range(measured.accepted_BK.shape[1]):
        ours = (measured.accepted_BK[:, k], measured.rounds_B)
        theirs = (replayed.accepted_BK[:, k], replayed.rounds_B)
        rate_measured, _ = _ratio(*ours)
        rate_replayed, _ = _ratio(*theirs)
        error = _difference_error(ours, theirs)
        rates_measured.append(rate_measured)
        rates_replayed.append(rate_replayed)
        rate_errors.append(error)
        difference = abs(rate_replayed - rate_measured)
        passed &= difference <= max(tolerance, error if or_within_error else 0.0)
    return Comparison(
        num_rounds_measured=round(measured.rounds_B.sum()),
        num_rounds_replayed=float(replayed.rounds_B.sum()),
        tau_measured=tau_measured,
        tau_replayed=tau_replayed,
        relative_difference=relative,
        relative_error_95=relative_error,
        acceptance_measured=rates_measured,
        acceptance_replayed=rates_replayed,
        acceptance_error_95=rate_errors,
        tolerance=tolerance,
        or_within_error=or_within_error,
        passed=bool(passed),
    )


def _ratio(numerator_B: np.ndarray, denominator_B: np.ndarray) -> tuple[float, np.ndarray]:
    """Ratio of sums, and each output's contribution to its error (linearised)."""
    total = max(float(denominator_B.sum()), 1e-12)
    ratio = float(numerator_B.sum()) / total
    return ratio, (numerator_B - ratio * denominator_B) / total


def _difference_error(
    ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray]
) -> float:
    """95 % half-width of the difference of two ratios over the same outputs."""
    difference_B = _ratio(*ours)[1] - _ratio(*theirs)[1]
    return Z_95 * float(np.sqrt((difference_B**2).sum()))
