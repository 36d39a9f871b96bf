"""Things timed side by side: one after the other in every round, so that a busy machine is busy for
all of them."""

import gc
import os
from collections.abc import Callable, Sequence
from statistics import median


def rounds(repeats: int, *timed: Callable[[], float]) -> list[list[float]]:
    """Seconds of each action, [action][round]; an action returns its own seconds.

    A first round is not counted: it warms up caches and makes what is made once.
    """
    seconds: list[list[float]] = [[] for _ in timed]
    for number in range(repeats + 1):
        for action, of_action in zip(timed, seconds, strict=True):
            gc.collect()
            # What somebody wrote before is not to be written on our time.
            os.sync()
            took = action()
            if number:
                of_action.append(took)
    return seconds


def over(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    """The ratio in each round."""
    return [a / b for a, b in zip(upper, lower, strict=True)]


def with_spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (least to most)."""
    middle, low, high = (f"{x:.{digits}f}" for x in (median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def rates(num_bytes: int, seconds: Sequence[float]) -> str:
    """MB/s, median and spread."""
    return with_spread([num_bytes / 1e6 / s for s in seconds], 0)
