"""Verification rounds: those of the engine, compared with those that the replay predicts.

Both sides count *whole* rounds only: a round that starts at token r of an output of n tokens drafts
the tokens r+1 .. r+K, and counts if r+K < n. vLLM's own counters also hold the last round of each
output, whose drafts reach beyond its end. The first token comes from the prompt's pass, without a
draft; every later one from a round.

Legend: B outputs, K draft tokens.
"""

from collections.abc import Sequence

import numpy as np

from specpipe.schemas.errors import ValidationError
from specpipe.schemas.records.served import RoundsComparison
from specpipe.stages.acceptance.evidence import FALSE_ALARM, chance_of_rounds
from specpipe.stages.acceptance.replay import Z_95, ReplaySpan, Rounds


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
    measured: Rounds, replayed: Rounds, honest: Sequence[ReplaySpan], *, tolerance: float
) -> RoundsComparison:
    """Whether tau and the acceptance per position agree: within the tolerance, or by chance.

    `honest` are the replayed spans with the probabilities by which an engine accepts
    (acceptance/evidence.py). The errors are those of the difference of two ratio estimators over
    the same outputs.
    """
    num_draft_tokens = measured.accepted_BK.shape[1]
    accepted_N = np.arange(num_draft_tokens + 1)
    # Of a round that accepts so many drafts: its tokens, and whether it accepts k of them.
    scores = [accepted_N + 1.0, *(1.0 * (accepted_N > k) for k in range(num_draft_tokens))]
    ours = [measured.tokens_B, *measured.accepted_BK.T]
    theirs = [replayed.tokens_B, *replayed.accepted_BK.T]
    rates, wanted, errors, chances = [], [], [], []
    for score_N, our_B, their_B in zip(scores, ours, theirs, strict=True):
        rate, _ = _ratio(our_B, measured.rounds_B)
        want, _ = _ratio(their_B, replayed.rounds_B)
        # Rounds are as random as what they accept: the count is taken against the wanted rate.
        apart = float(our_B.sum() - want * measured.rounds_B.sum())
        chance = len(scores) * chance_of_rounds(honest, score_N - want, apart)
        rates.append(rate)
        wanted.append(want)
        errors.append(_difference_error((our_B, measured.rounds_B), (their_B, replayed.rounds_B)))
        chances.append(min(1.0, chance))
    differences = [want - rate for rate, want in zip(rates, wanted, strict=True)]
    differences[0] /= rates[0]
    passed = all(
        abs(difference) <= tolerance or chance >= FALSE_ALARM
        for difference, chance in zip(differences, chances, strict=True)
    )
    return RoundsComparison(
        num_rounds_measured=round(measured.rounds_B.sum()),
        num_rounds_replayed=float(replayed.rounds_B.sum()),
        tau_measured=rates[0],
        tau_replayed=wanted[0],
        relative_difference=differences[0],
        relative_error_95=errors[0] / rates[0],
        acceptance_measured=rates[1:],
        acceptance_replayed=wanted[1:],
        acceptance_error_95=errors[1:],
        tolerance=tolerance,
        chance=chances[0],
        acceptance_chance=chances[1:],
        passed=passed,
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
