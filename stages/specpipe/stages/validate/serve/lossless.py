"""Is the engine lossless? The first question of `serve`: acceptance means nothing before it.

Legend: S rows, V vocabulary, B outputs.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from specpipe.stages.acceptance.evidence import FALSE_ALARM, chance_of_differences
from specpipe.stages.validate.serve.near_ties import LEAST_STEPS

Array = npt.NDArray[np.floating]

MOST_NAMED = 20
EXCESS_TOLERANCE = 0.01
"""Nats by which an engine's arithmetic may shift the mean log-likelihood of its own text: a
temperature of 0.995 would."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(Record):
    """A prompt whose greedy outputs differ."""

    prompt: int
    """Its number among the decoded prompts, from 0."""
    position: int
    """First token of the output that differs."""
    token_without_drafter: int
    """Of an engine without a drafter, or the target's own choice."""
    token_with_drafter: int
    logit_gap: float
    """Target's logit of the first minus that of the second, on the text that both share."""
    bf16_step: float
    """Distance of two neighbouring bfloat16 numbers at the size of these logits."""
    near_tie: bool


class GreedyCheck(Record):
    num_prompts: int
    num_identical: int
    differences: list[Difference]
    """The first of them, at most 20."""
    near_tie_steps: float = 4
    """Logits within so many steps of bfloat16 may change order between two batch shapes."""
    passed: bool
    """Every difference is a near-tie of the two logits."""


class SampledCheck(Record):
    """Log-likelihood per token, under the target, of outputs at temperature 1.

    Two tests. The mean must be that of the outputs without a drafter. And the log-probability of
    a token drawn from p is -entropy(p) in the mean, whatever the text before it: the mean of their
    sum, the *excess*, must be 0, which is the sharper test of the two. Chance fails either of them
    once in 10,000 times at most (see acceptance/evidence.py).
    """

    mean_logprob_without_drafter: float | None
    """None where there is no engine without a drafter to compare with: a server that runs."""
    mean_logprob_with_drafter: float
    standard_error: float | None
    """Of the difference, over prompts."""
    z: float | None
    excess: float
    """Mean of log p(token) + entropy(p) over the outputs with drafter, nats."""
    excess_standard_error: float
    excess_z: float
    chance: float | None = None
    """A bound of the probability of such a difference of the means by chance, and"""
    excess_chance: float | None = None
    """of such an excess."""
    passed: bool

    def in_words(self) -> str:
        """The first of the two tests."""
        words = f"mean log-probability {self.mean_logprob_with_drafter:.4f} per token with drafter"
        if self.z is None:
            return words
        return (
            f"{words}, {self.mean_logprob_without_drafter:.4f} without"
            f" ({self.z:+.1f} standard errors)"
        )


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
    found = [difference for difference in differences if difference is not None]
    return GreedyCheck(
        num_prompts=len(differences),
        num_identical=len(differences) - len(found),
        differences=found[:MOST_NAMED],
        near_tie_steps=near_tie_steps,
        passed=all(difference.near_tie for difference in found),
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
