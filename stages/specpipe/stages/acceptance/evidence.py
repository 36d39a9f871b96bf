"""How unlikely is it by chance? Tests whose rate of false alarms is bounded on sets of any size.

A statistic whose moment generating function under honest chance is known needs no variance and no
normal distribution: exp(s S) / E[exp(s S)] has the mean 1, and so has its mean over several slopes
s. By Markov's inequality it exceeds 1/a with a probability of at most a, whatever the number of
samples, their lengths and their dependence (arXiv 2210.01948: e-values). Slopes are chosen from
what chance does not touch.

Legend: B spans or outputs, R starts of a span, K draft tokens, N = K + 1 outcomes of a round,
J slopes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from specpipe.stages.acceptance.replay import ReplaySpan

Array = npt.NDArray[np.float64]

FALSE_ALARM = 1e-4
"""Chance with which an honest engine fails a check."""
_Z = float(np.sqrt(2 * np.log(1 / FALSE_ALARM)))
"""Standard errors of what just fails."""
_SIZES = (0.5, 1.0, 2.0)


def slopes(standard_error: float, largest: float = 3.0) -> Array:
    """Slopes for a statistic of that standard error, to either side."""
    sizes = [min(size * _Z / max(standard_error, 1e-12), largest) for size in _SIZES]
    return np.array([*sizes, *(-size for size in sizes)])


def chance(log_ratios_J: Array) -> float:
    """A bound of the probability of the like by chance, from log(exp(s S) / E[exp(s S)])."""
    top = float(log_ratios_J.max())
    log_evidence = top + float(np.log(np.exp(log_ratios_J - top).mean()))
    return float(np.exp(min(0.0, -log_evidence)))


def chance_of_differences(differences_B: Array) -> float:
    """Of a sum of differences that may as well have the other sign each, were nothing wrong."""
    scale = float(np.sqrt((differences_B**2).sum()))
    if scale == 0:
        return 1.0
    terms_JB = slopes(scale, np.inf)[:, None] * differences_B
    # log cosh, without overflow.
    size_JB = np.abs(terms_JB)
    log_mean_JB = size_JB + np.log1p(np.exp(-2 * size_JB)) - np.log(2)
    return chance((terms_JB - log_mean_JB).sum(1))


def chance_of_rounds(
    spans: Sequence[ReplaySpan], score_N: npt.NDArray[np.floating], observed: float
) -> float:
    """Of a sum over the whole rounds of all spans, given each round's accepted drafts 0..K.

    A round that accepts n drafts adds `score_N[n]`; `accept_RK` says with which probabilities.
    """
    step = 1e-3
    curvature = sum(_log_mean(spans, np.exp(sign * step * score_N)) for sign in (1, -1)) / step**2
    slopes_J = slopes(float(np.sqrt(max(curvature, 0.0))))
    log_means = [_log_mean(spans, np.exp(slope * score_N)) for slope in slopes_J]
    return chance(slopes_J * observed - np.array(log_means))


def _log_mean(spans: Sequence[ReplaySpan], factor_N: Array) -> float:
    """log E[product over whole rounds of factor_N[accepted]], summed over the spans.

    Forward over the starts as in acceptance/replay.py, with each round's outcome weighed.
    """
    K = len(factor_N) - 1
    num_starts = max((span.num_tokens for span in spans), default=0)
    exactly_BRN = np.zeros((len(spans), num_starts, K + 1))
    for exactly_RN, span in zip(exactly_BRN, spans, strict=True):
        at_least = np.cumprod(span.drafting(K).astype(np.float64), axis=1)
        rows = len(at_least)
        exactly_RN[:rows, 0] = 1.0
        exactly_RN[:rows, 1:] = at_least
        exactly_RN[:rows, :-1] -= at_least
    whole_B = np.array([span.num_tokens - K for span in spans])
    mass_BR = np.zeros((len(spans), num_starts + K + 1))
    mass_BR[:, 0] = 1.0
    log_scale_B = np.zeros(len(spans))
    for r in range(max(int(whole_B.max(initial=0)), 0)):
        mass_B = np.where(r < whole_B, mass_BR[:, r], 0.0)
        mass_BR[:, r] -= mass_B
        mass_BR[:, r + 1 : r + K + 2] += mass_B[:, None] * exactly_BRN[:, r] * factor_N
        if r % 16 == 0:
            scale_B = np.maximum(mass_BR.sum(1), 1e-300)
            mass_BR /= scale_B[:, None]
            log_scale_B += np.log(scale_B)
    return float((log_scale_B + np.log(np.maximum(mass_BR.sum(1), 1e-300))).sum())
