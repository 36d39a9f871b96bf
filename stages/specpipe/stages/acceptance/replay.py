"""The replay: the acceptance that a serving engine will see, summed exactly over a text.

A token of a text that the target wrote came from an accepted draft with probability
w = min(1, q(x)/p(x)) at temperature 1 (Leviathan et al., arXiv 2211.17192: the output token is an
accepted draft with exactly this probability given the output), or w = [argmax q = x] with greedy
drafting. A round that starts at i therefore accepts k of K drafts with probability
w_1 ... w_k (1 - w_{k+1}), the last factor left out for k = K, and the next round starts k + 1
further on. Summing this forward over the text gives the expected number of rounds and of tokens,
with the engine's own distribution of round starts, and without sampling noise.

Legend: B spans, R starts of a span, K draft tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specpipe.schemas.records.metrics import ReplayCurve, TauDifference

Array = npt.NDArray[np.float64]

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class ReplaySpan:
    """One decode: a supervised span, from the start just before its first token.

    `accept_RK` is float [R, K]: w of head k at the r-th start (start r has emitted token r of the
    span and drafts the tokens r+1, r+2, ...); R = num_tokens - 1. Entries whose token lies outside
    the span are never read.
    """

    accept_RK: npt.NDArray[np.floating]
    num_tokens: int
    sample: int
    """Spans of one sample share this number; the confidence interval is over samples."""
    weight: float = 1.0
    """Multiplicity of the sample."""
    fewer: tuple[npt.NDArray[np.floating], ...] = ()
    """w of rounds with 1, 2, ..., K-1 drafts, [R, 1], [R, 2], ..., where these are others than the
    first ones of K; empty: they are the same."""

    def drafting(self, num_draft_tokens: int) -> npt.NDArray[np.floating]:
        """w [R, k] of rounds with so many drafts."""
        if num_draft_tokens <= len(self.fewer):
            return self.fewer[num_draft_tokens - 1]
        return self.accept_RK[:, :num_draft_tokens]


@dataclass(frozen=True, slots=True)
class Rounds:
    """Expected counts per span, for one number of draft tokens K."""

    rounds_B: Array
    accepted_BK: Array
    """Rounds whose first k drafts are accepted."""

    @property
    def tokens_B(self) -> Array:
        tokens_B: Array = self.rounds_B + self.accepted_BK.sum(axis=1)
        return tokens_B


def expected_rounds(spans: Sequence[ReplaySpan], num_draft_tokens: int) -> Rounds:
    """Expected whole rounds with K draft tokens on each span; a round cut by its end is none."""
    K = num_draft_tokens
    num_starts = max((span.num_tokens for span in spans), default=0)
    accept_BRK = np.zeros((len(spans), num_starts, K))
    for accept_RK, span in zip(accept_BRK, spans, strict=True):
        accept_RK[: len(span.accept_RK)] = span.drafting(K)
    # A round at start r drafts the tokens r+1 .. r+K and adds a bonus token: r+K must exist.
    whole_B = np.array([span.num_tokens - K for span in spans])
    survive_BRK = np.cumprod(accept_BRK, axis=2)
    visits_BR = np.zeros((len(spans), num_starts + K + 1))
    visits_BR[:, 0] = 1.0
    rounds_B = np.zeros(len(spans))
    accepted_BK = np.zeros((len(spans), K))
    for r in range(max(int(whole_B.max(initial=0)), 0)):
        visit_B = np.where(r < whole_B, visits_BR[:, r], 0.0)
        survive_BK = visit_B[:, None] * survive_BRK[:, r]
        rounds_B += visit_B
        accepted_BK += survive_BK
        # Exactly k accepted: first k survive and k+1 does not.
        at_least = np.concatenate([visit_B[:, None], survive_BK], axis=1)
        exactly = at_least.copy()
        exactly[:, :-1] -= at_least[:, 1:]
        visits_BR[:, r + 1 : r + K + 2] += exactly
    return Rounds(rounds_B, accepted_BK)


def replay(spans: Sequence[ReplaySpan], num_heads: int, *, exact: bool) -> ReplayCurve:
    """tau for 1..num_heads draft tokens with a 95 % interval over samples (ratio estimator).

    `exact` says whether the text is of the kind for which the replay is exact; it is passed on.
    """
    tau, low, high, positions, num_rounds = [], [], [], [], []
    for K in range(1, num_heads + 1):
        mean = _mean_tokens(spans, K)
        margin = _margin(_length(mean.error_of_sample), mean.num_samples)
        tau.append(mean.tau)
        low.append(max(1.0, mean.tau - margin))
        high.append(min(K + 1.0, mean.tau + margin))
        positions.append(mean.acceptance_K)
        num_rounds.append(mean.num_rounds)
    return ReplayCurve(
        tau=tau,
        tau_low=low,
        tau_high=high,
        acceptance_per_position=positions,
        num_rounds=num_rounds,
        exact=exact,
    )


def tau_difference(
    spans: Sequence[ReplaySpan], others: Sequence[ReplaySpan], num_heads: int
) -> TauDifference:
    """tau of `spans` minus that of `others`, the same spans of another drafter, with a 95 %
    interval: what both have in common, the text, is not part of the error."""
    difference, low, high, errors = [], [], [], []
    for K in range(1, num_heads + 1):
        ours, theirs = _mean_tokens(spans, K), _mean_tokens(others, K)
        error = _length(ours.error_of_sample - theirs.error_of_sample)
        margin = _margin(error, ours.num_samples)
        mean = ours.tau - theirs.tau
        difference.append(mean)
        low.append(max(-float(K), mean - margin))
        high.append(min(float(K), mean + margin))
        errors.append(error)
    return TauDifference(difference=difference, low=low, high=high, standard_error=errors)


@dataclass(frozen=True, slots=True)
class _MeanTokens:
    tau: float
    num_rounds: float
    num_samples: int
    """With a whole round."""
    acceptance_K: list[float]
    error_of_sample: Array
    """What each sample adds to the error of tau (linearised)."""


def _mean_tokens(spans: Sequence[ReplaySpan], num_draft_tokens: int) -> _MeanTokens:
    """tau as a ratio of sums."""
    weights_B = np.array([span.weight for span in spans], dtype=np.float64)
    samples_B = np.array([span.sample for span in spans], dtype=np.int64)
    counts = expected_rounds(spans, num_draft_tokens)
    rounds = float(weights_B @ counts.rounds_B)
    tau = float(weights_B @ counts.tokens_B) / rounds if rounds else 1.0
    residuals_B = weights_B * (counts.tokens_B - tau * counts.rounds_B) / (rounds or 1.0)
    errors = np.zeros(int(samples_B.max(initial=-1)) + 1)
    np.add.at(errors, samples_B, residuals_B)
    return _MeanTokens(
        tau=tau,
        num_rounds=rounds,
        num_samples=len(np.unique(samples_B[counts.rounds_B > 0])),
        acceptance_K=((weights_B @ counts.accepted_BK) / (rounds or 1.0)).tolist(),
        error_of_sample=errors,
    )


def _length(values: Array) -> float:
    return float(np.sqrt((values**2).sum()))


def _margin(error: float, num_samples: int) -> float:
    """Half width of a 95 % interval, from an error that was estimated from so many samples.

    Student's t by its expansion in 1 / degrees of freedom (Abramowitz and Stegun 26.7.5), times
    sqrt(n / (n - 1)). One sample says nothing about the spread: infinite.
    """
    if num_samples < 2:
        return np.inf
    freedom, z = num_samples - 1, Z_95
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(error * t * np.sqrt(num_samples / freedom))
