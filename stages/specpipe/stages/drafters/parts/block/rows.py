"""The blocks that a step trains on."""

import numpy as np

from specpipe.stages.drafters.contract import Generator, Rows


def chosen_anchors(rows_KN: Rows, most: int, rng: Generator) -> Rows:
    """All heads of at most so many starts of a sample, each start as likely."""
    usable_N = np.flatnonzero(rows_KN.any(axis=0))
    if len(usable_N) <= most:
        return rows_KN
    chosen_N = np.zeros(rows_KN.shape[1], np.bool_)
    chosen_N[rng.choice(usable_N, most, replace=False)] = True
    return rows_KN & chosen_N
