"""Which draft tokens of which starts a step trains on (COD sampling of the P-EAGLE paper).

The first draft token of every start comes from a row of the text, which is computed anyway. Later
ones cost a masked row each, and are thinned with their depth: a start that is kept at one depth was
kept at all before it, so that its rows are those of serving.

Legend: K heads, N starts.
"""

import numpy as np

from specpipe.schemas.drafters.peagle import PeagleSettings
from specpipe.stages.drafters.contract import Generator, Rows


def thinned(settings: PeagleSettings, rows_KN: Rows, rng: Generator) -> Rows:
    """Of the rows of one sample: head 1 everywhere, head k at a share of the anchors, drawn from
    those of head k-1.

    The share is ratio^(k-1), at least the floor; as many are kept as have a token to draft.
    """
    kept_KN = np.zeros_like(rows_KN)
    kept_KN[0] = rows_KN[0]
    anchors = rng.permutation(np.flatnonzero(rows_KN[0]))[: settings.anchors]
    num_anchors = len(anchors)
    for depth in range(1, len(rows_KN)):
        share = max(settings.depth_ratio**depth, settings.depth_floor)
        # Their order is random: the first ones are a random choice.
        anchors = anchors[rows_KN[depth, anchors]][: round(share * num_anchors)]
        kept_KN[depth, anchors] = True
    return kept_KN


def rows_per_anchor(settings: PeagleSettings, num_heads: int) -> float:
    """Masked rows of an anchor, on average, where every head has a token to draft."""
    return sum(
        max(settings.depth_ratio**depth, settings.depth_floor) for depth in range(1, num_heads)
    )
