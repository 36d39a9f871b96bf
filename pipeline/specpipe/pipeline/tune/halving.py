"""Successive halving: which trials are trained for how long (Jamieson and Talwalkar, 1502.07943).

All trials get few steps, the best third three times as many, and so on. Every rung trains anew with
its own schedule: a trial that stops in the middle of a long schedule has not had the fall of its
learning rate, where tau rises most, and says little of what a whole run comes to. That costs a
third more than going on would. The recipe takes part in every rung.

After the first rung, a trial between the best of the rung before takes part, too, as in evolution
strategies with intermediate recombination (Beyer and Schwefel, 2002, section 2.2.3): what is good
of each of them is seldom together in one of few random trials.
"""

import math
from collections.abc import Sequence

from specpipe.schemas.records.tune import Rung

KEPT = 3
"""One trial of so many goes on, and takes so many times the steps."""
LEAST_STEPS = 30
"""Steps below which a run says nothing of a longer one."""
_LEAST_TRIALS = {3: 9, 2: 6, 1: 3}
"""Trials to begin with, by number of rungs."""
_LEAST_GO_ON = 2


def planned_rungs(
    budget: float, full_steps: int, max_trials: int, steps_per_run: float = 0.0
) -> list[Rung]:
    """The rungs that a budget allows, none where it is too small; all in steps of the recipe's
    size.

    `steps_per_run` is what a run takes besides its steps. Three rungs where the shortest runs have
    `LEAST_STEPS`, else fewer; the longest runs are the recipe's own length, or what the budget
    allows; what is left of it is for more trials.
    """
    least_steps = min(LEAST_STEPS, full_steps)
    for num_rungs, least_trials in _LEAST_TRIALS.items():
        num_trials = min(least_trials, max_trials)
        counts = _counts(num_trials, num_rungs)
        free = budget - sum(counts) * steps_per_run
        longest = min(full_steps, math.floor(free / _share(counts)))
        if longest < least_steps * KEPT ** (num_rungs - 1):
            continue
        while num_trials < max_trials:
            rungs = _rungs(longest, num_trials + 1, num_rungs)
            if _cost(rungs, steps_per_run) > budget:
                break
            num_trials += 1
        return _rungs(longest, num_trials, num_rungs)
    return []


def least_budget(full_steps: int, max_trials: int, steps_per_run: float = 0.0) -> int:
    """The smallest budget that allows a search."""
    rungs = _rungs(min(LEAST_STEPS, full_steps), min(_LEAST_TRIALS[1], max_trials), 1)
    return math.ceil(_cost(rungs, steps_per_run))


def total_steps(rungs: Sequence[Rung]) -> int:
    """At most, in steps of the recipe's size."""
    return sum(rung.steps * rung.num_trials for rung in rungs)


def _rungs(longest: int, num_trials: int, num_rungs: int) -> list[Rung]:
    counts = _counts(num_trials, num_rungs)
    return [
        Rung(
            steps=max(1, round(longest / KEPT ** (num_rungs - 1 - at))),
            num_trials=count,
            has_middle=at > 0,
        )
        for at, count in enumerate(counts)
    ]


def _counts(num_trials: int, num_rungs: int) -> list[int]:
    """Runs of each rung: the recipe, so many others, and the middle of the best before."""
    counts = [num_trials]
    for _ in range(num_rungs - 1):
        others = counts[-1] - 1
        counts.append(2 + min(others, max(_LEAST_GO_ON, math.ceil(others / KEPT))))
    return counts


def _share(counts: Sequence[int]) -> float:
    """Cost of all runs over that of one of the longest."""
    return sum(count / float(KEPT**below) for below, count in enumerate(reversed(counts)))


def _cost(rungs: Sequence[Rung], steps_per_run: float) -> float:
    return sum(rung.num_trials * (rung.steps + steps_per_run) for rung in rungs)
