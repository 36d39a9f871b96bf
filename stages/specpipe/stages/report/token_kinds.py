"""Acceptance by kind of token.

Legend: T tokens, K heads, R starts of a span, C kinds of token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specpipe.stages.report.drafted import DraftedSample, DraftedSpan, Ids

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KindSums:
    """[c, k-1]: of tokens of kind c that head k drafts after k-1 accepted drafts."""

    reached_CK: Array
    """Weight of the starts that come as far."""
    accepted_CK: Array

    def rates(self) -> Array:
        """[C, K]; NaN where no start comes as far."""
        with np.errstate(invalid="ignore"):
            rates_CK: Array = self.accepted_CK / self.reached_CK
        return rates_CK

    def shares(self) -> Array:
        """[C]: of the tokens that head 1 drafts, how many are of the kind."""
        shares_C: Array = self.reached_CK[:, 0] / max(self.reached_CK[:, 0].sum(), 1e-12)
        return shares_C


def sums_by_kind(
    samples: Sequence[DraftedSample],
    kinds: Sequence[Ids],
    num_kinds: int,
    num_heads: int,
    *,
    is_greedy: bool,
) -> KindSums:
    """`kinds` [T] of each sample; greedy, or as acceptance at temperature 1 expects it.

    As in the metrics of training every start counts, weighted by how often the drafts before
    are accepted; but what counts as accepted is the text's own token, whose kind is known.
    """
    reached_CK = np.zeros((num_kinds, num_heads))
    accepted_CK = np.zeros((num_kinds, num_heads))
    for sample, kinds_T in zip(samples, kinds, strict=True):
        for span in sample.spans:
            accept_RK = _greedy(span, sample.input_ids_T) if is_greedy else span.accept_RK
            before_R = np.full(len(accept_RK), sample.weight)
            for k in range(1, num_heads + 1):
                # The starts whose k-th token lies inside the span.
                num = max(0, span.end - span.begin - k)
                kinds_R = kinds_T[span.begin + k : span.begin + k + num]
                before_R = before_R[:num]
                np.add.at(reached_CK[:, k - 1], kinds_R, before_R)
                before_R = before_R * accept_RK[:num, k - 1]
                np.add.at(accepted_CK[:, k - 1], kinds_R, before_R)
    return KindSums(reached_CK, accepted_CK)


def _greedy(span: DraftedSpan, input_ids_T: Ids) -> Array:
    """1 where the most likely draft is the text's token."""
    num_starts, num_heads = span.drafts_RK.shape
    accept_RK = np.zeros((num_starts, num_heads))
    for k in range(1, num_heads + 1):
        num = max(0, span.end - span.begin - k)
        tokens_R = input_ids_T[span.begin + k : span.begin + k + num]
        accept_RK[:num, k - 1] = span.drafts_RK[:num, k - 1] == tokens_R
    return accept_RK
