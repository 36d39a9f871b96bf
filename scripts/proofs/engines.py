"""Honest engines, simulated: how often do tau and acceptance differ by more than is accepted?

Legend: R starts of a text, K draft tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from scripts.proofs.table import share
from specpipe.schemas.records.served import RoundsComparison
from specpipe.stages.acceptance.replay import ReplaySpan, Rounds, expected_rounds
from specpipe.stages.validate.serve.rounds import compare, measured_rounds

Array = npt.NDArray[np.floating]

HEADER = ("rounds of", "set", "drafter", "simple limit", "ours", "chance below 1 %")
SETS = ((2, 8), (8, 32), (48, 64))
"""Prompts and tokens of each."""
DRAFTERS = {"young": (0.3, 3.0), "old": (3.0, 1.0)}
"""Beta distributions of its acceptance."""
NUM_DRAFTS = 3
TOLERANCES = {"temperature 1": 0.02, "greedy": 0.01}


def decode(spans: Sequence[ReplaySpan], num_drafts: int, rng: np.random.Generator) -> Rounds:
    """What an engine counts that accepts with the spans' probabilities."""
    every = [list(_rounds(span, num_drafts, rng)) for span in spans]
    return measured_rounds(every, [span.num_tokens for span in spans], num_drafts)


def _rounds(span: ReplaySpan, num_drafts: int, rng: np.random.Generator) -> Iterator[int]:
    start = 0
    while start < span.num_tokens - 1:
        most = min(num_drafts, span.num_tokens - 1 - start)
        draws = rng.random(most) < span.accept_RK[start, :most]
        accepted = most if draws.all() else int(draws.argmin())
        yield accepted
        start += accepted + 1


def failed_simply(found: RoundsComparison, mode: str) -> bool:
    """By simple limits: 1 % greedily; 2 %, or the 95 % error, at temperature 1."""
    tolerance, with_error = TOLERANCES[mode], mode != "greedy"
    pairs = [
        (found.relative_difference, found.relative_error_95),
        *zip(
            np.subtract(found.acceptance_replayed, found.acceptance_measured),
            found.acceptance_error_95,
            strict=True,
        ),
    ]
    return any(abs(apart) > max(tolerance, error if with_error else 0) for apart, error in pairs)


def rows(runs: int, rng: np.random.Generator) -> Iterator[tuple[str, ...]]:
    """A row for each kind of set, of drafter and of drafting."""
    for mode in TOLERANCES:
        for prompts, tokens in SETS:
            for name, (a, b) in DRAFTERS.items():
                simple = ours = small = 0
                num = max(1, runs * 16 // max(16, prompts * tokens // 4))
                for _ in range(num):
                    chances = rng.beta(a, b, size=(prompts, tokens - 1, NUM_DRAFTS))
                    honest, hard = _spans(chances, mode, rng)
                    measured = decode(honest, NUM_DRAFTS, rng)
                    replayed = expected_rounds(hard, NUM_DRAFTS)
                    found = compare(measured, replayed, honest, tolerance=TOLERANCES[mode])
                    simple += failed_simply(found, mode)
                    ours += not found.passed
                    small += min([found.chance or 0, *found.acceptance_chance]) < 0.01
                set_of = f"{prompts} x {tokens}"
                yield mode, set_of, name, share(simple, num), share(ours, num), share(small, num)


def _spans(
    chances: Array, mode: str, rng: np.random.Generator
) -> tuple[list[ReplaySpan], list[ReplaySpan]]:
    """What an engine accepts with, and what the replay says: greedily, all or nothing, but that
    one draft in a hundred is a near-tie, in which the replay is no better than a coin."""
    if mode == "greedy":
        is_tie = rng.random(chances.shape) < 0.01
        hard = (chances > 0.5).astype(float)
        chances = np.where(is_tie, 0.5, hard)
    else:
        hard = chances
    every = [
        [ReplaySpan(accept_RK, len(accept_RK) + 1, sample) for sample, accept_RK in enumerate(one)]
        for one in (chances, hard)
    ]
    return every[0], every[1]
