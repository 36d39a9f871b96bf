"""Is the engine lossless? The first question of `serve`: acceptance means nothing before it.

Legend: S rows, V vocabulary, B outputs.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from specpipe.schemas.records.served import Difference, GreedyCheck, SampledCheck
from specpipe.stages.acceptance.evidence import FALSE_ALARM, chance_of_differences
from specpipe.stages.validate.serve.near_ties import LEAST_STEPS

Array = npt.NDArray[np.floating]

MOST_NAMED = 20
EXCESS_TOLERANCE = 0.01
"""Nats by which an engine's arithmetic may shift the mean log-likelihood of its own text: a
temperature of 0.995 would."""


def greedy_difference(
    prompt: int,
    without: Sequence[int],
    with_drafter: Sequence[int],
    logits_SV: Array,
    near_tie_steps: float = LEAST_STEPS,
) -> Difference | None:
    """The first difference of two greedy outputs; `logits_SV` are the target's, row per token."""
    position = num_shared(without, with_drafter)
    if position == len(without):
        return None
    tokens = (without[position], with_drafter[position])
    return _difference(prompt, position, tokens, logits_SV[position], near_tie_steps)


def num_shared(without: Sequence[int], with_drafter: Sequence[int]) -> int:
    """Tokens before the first difference of two outputs of one length."""
    pairs = enumerate(zip(without, with_drafter, strict=True))
    return next((at for at, (first, second) in pairs if first != second), len(without))


def target_difference(
    prompt: int,
    output: Sequence[int],
    logits_SV: Array,
    near_tie_steps: float = LEAST_STEPS,
) -> Difference | None:
    """Where a greedy output is furthest from the target's own choice after the same text."""
    best_S = logits_SV.argmax(-1)
    differences = [
        _difference(
            prompt, position, (int(best_S[position]), token), logits_SV[position], near_tie_steps
        )
        for position, token in enumerate(output)
        if token != best_S[position]
    ]
    return max(differences, key=lambda one: one.logit_gap / one.bf16_step, default=None)


def _difference(
    prompt: int, position: int, tokens: tuple[int, int], logits_V: Array, near_tie_steps: float
) -> Difference:
    first, second = tokens
    gap = float(logits_V[first] - logits_V[second])
    step = bf16_step(float(np.abs(logits_V[[first, second]]).max()))
    return Difference(
        prompt=prompt,
        position=position,
        token_without_drafter=first,
        token_with_drafter=second,
        logit_gap=gap,
        bf16_step=step,
        near_tie=abs(gap) <= near_tie_steps * step,
    )


def check_greedy(
    differences: Sequence[Difference | None], near_tie_steps: float = LEAST_STEPS
) -> GreedyCheck:
    """From one entry per prompt, None where the outputs are the same."""
    different = [difference for difference in differences if difference is not None]
    return GreedyCheck(
        num_prompts=len(differences),
        num_identical=len(differences) - len(different),
        differences=different[:MOST_NAMED],
        near_tie_steps=near_tie_steps,
        passed=all(difference.near_tie for difference in different),
    )


def check_sampled(
    without_B: Array | None, with_B: Array, excess_B: Array, excess_chance: float
) -> SampledCheck:
    """From the mean log-probability of each output, of the same prompts in the same order.

    `excess_B` is the mean of log p(token) + entropy(p) over each output with drafter, and
    `excess_chance` the probability of that by chance; without outputs that had no drafter it is
    the only test.
    """
    error, z, chance = None, None, None
    if without_B is not None:
        error, z = _error_and_z(with_B - without_B)
        chance = chance_of_differences(with_B - without_B)
    excess_error, excess_z = _error_and_z(excess_B)
    excess = float(excess_B.mean())
    is_like_text = abs(excess) <= EXCESS_TOLERANCE or excess_chance >= FALSE_ALARM
    return SampledCheck(
        mean_logprob_without_drafter=None if without_B is None else float(without_B.mean()),
        mean_logprob_with_drafter=float(with_B.mean()),
        standard_error=error,
        z=z,
        excess=excess,
        excess_standard_error=excess_error,
        excess_z=excess_z,
        chance=chance,
        excess_chance=excess_chance,
        passed=is_like_text and (chance is None or chance >= FALSE_ALARM),
    )


def _error_and_z(values_B: Array) -> tuple[float, float]:
    """Standard error of the mean, and the mean in units of it."""
    error = float(values_B.std(ddof=1) / np.sqrt(len(values_B)))
    return error, float(values_B.mean()) / max(error, 1e-12)


def bf16_step(value: float) -> float:
    """Distance of neighbouring bfloat16 numbers (8 significant bits) at the size of `value`."""
    return float(2.0 ** (np.floor(np.log2(max(abs(value), 1e-30))) - 7))
