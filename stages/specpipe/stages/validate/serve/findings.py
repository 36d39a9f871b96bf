"""What validation level `serve` found, and what is wrong with it in words."""

from collections.abc import Sequence

from specpipe.schemas.records.served import (
    RoundsComparison,
    Served,
)
from specpipe.stages.acceptance.replay import ReplaySpan, Rounds
from specpipe.stages.validate.serve.rounds import compare

GREEDY_TOLERANCE = 0.01
SAMPLED_TOLERANCE = 0.02
"""What an engine's arithmetic may shift tau and acceptance by, whatever is measured how often."""


def compare_at(
    temperature: float, measured: Rounds, replayed: Rounds, honest: Sequence[ReplaySpan]
) -> RoundsComparison:
    """By the tolerance of that temperature; see `rounds.compare`."""
    tolerance = SAMPLED_TOLERANCE if temperature else GREEDY_TOLERANCE
    return compare(measured, replayed, honest, tolerance=tolerance)


def problems_of(run: Served) -> list[str]:
    """What is wrong, in words, one line each."""
    with_tokens = f"with {run.num_draft_tokens} draft tokens"
    problems = []
    if not run.lossless_greedy.passed:
        worst = next(d for d in run.lossless_greedy.differences if not d.near_tie)
        problems.append(
            f"{with_tokens} vLLM's greedy output is not the target's: prompt {worst.prompt} differs"
            f" at token {worst.position} where the logits are {worst.logit_gap:.3g} apart"
        )
    if not run.lossless_temperature_1.passed:
        check = run.lossless_temperature_1
        problems.append(
            f"{with_tokens} vLLM's output at temperature 1 is not the target's:"
            f" {check.in_words()}; {check.excess:+.3f} beside the target's own entropy"
            f" ({check.excess_z:+.1f})"
        )
    for name, comparison in (("greedy", run.greedy), ("at temperature 1", run.temperature_1)):
        if comparison is not None and not comparison.passed:
            problems.append(
                f"{with_tokens}, {name}: replayed tau {comparison.tau_replayed:.4f}, measured"
                f" {comparison.tau_measured:.4f}; acceptance per position replayed"
                f" {_rates(comparison.acceptance_replayed)},"
                f" measured {_rates(comparison.acceptance_measured)}; by chance at most"
                f" {_least(comparison):.1g}"
            )
    return problems


def _least(comparison: RoundsComparison) -> float:
    return min(comparison.chance or 0.0, *comparison.acceptance_chance)


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.3f}" for rate in rates)
