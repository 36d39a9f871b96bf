"""How far apart may two logits be that an engine's arithmetic puts in another order?

Distances are in steps of bfloat16 at the size of the logits. An engine's difference of two logits
is taken to be off by a normal error of a standard deviation that the text itself shows: by how
many of its tokens, on which nothing depends here, are not the target's first choice. Small sets
show little, and are given the largest error.
"""

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from specpipe.stages.acceptance.evidence import FALSE_ALARM

Array = npt.NDArray[np.floating]

LEAST_STEPS = 4.0
ERROR_STEPS = (0.5, 2.0)
"""Bounds of the standard deviation."""
_NORMAL = NormalDist()


def near_tie_steps(lead_S: Array, num_others: int) -> float:
    """Distance at which one token in 10,000 sets of this size would still be another.

    `lead_S` are the leads of the target's first choice over its second at each token of the set,
    of which `num_others` are not the first.
    """
    if not len(lead_S):
        return LEAST_STEPS
    error = _error_steps(np.asarray(lead_S, dtype=np.float64), num_others)
    beyond = _NORMAL.inv_cdf(1 - FALSE_ALARM / len(lead_S))
    return max(LEAST_STEPS, error * beyond)


def _error_steps(lead_S: Array, num_others: int) -> float:
    """The largest standard deviation with which so few others are no surprise."""
    surprising = num_others + 3 * np.sqrt(num_others) + 3
    low, high = ERROR_STEPS
    near_S = np.sort(lead_S)[: max(1000, 100 * num_others)]
    if _expected(near_S, high) <= surprising:
        return high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _expected(near_S, middle) <= surprising else (low, middle)
    return high


def _expected(lead_S: Array, error: float) -> float:
    """Tokens that are others, in the mean."""
    return float(sum(_NORMAL.cdf(-float(lead) / error) for lead in lead_S))
