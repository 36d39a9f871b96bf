"""Seconds of a decoding step of a running engine, by batch size, drafting or not."""

import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

_PASSES = 5


class StepTime(BaseModel):
    """One batch size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int
    seconds_per_step: float
    """A step of the target, or a round of drafts and their verification, for the whole batch."""
    seconds_per_token: float
    """Per token of one of the requests: so many steps as its tokens took on average."""


def step_times(
    llm: Any, prompts: Sequence[Sequence[int]], num_tokens: int, batch_sizes: Sequence[int]
) -> list[StepTime]:
    """Decode batches of each size at temperature 1; prompts are taken again where they are few.

    Reading the prompts is timed alone and taken off. What else the machine does only adds to a
    step, so the fastest of five passes counts. One more warms up first: only its
    rounds count.
    """
    return [_step_time(llm, prompts, num_tokens, size) for size in batch_sizes]


def _step_time(
    llm: Any, prompts: Sequence[Sequence[int]], num_tokens: int, batch_size: int
) -> StepTime:
    steps, num_rounds = [], 0.0
    for number in range(1 + _PASSES):
        first = number * batch_size
        batch = [prompts[(first + at) % len(prompts)] for at in range(batch_size)]
        reading, _ = _decode(llm, batch, 1)
        seconds, rounds = _decode(llm, batch, num_tokens)
        steps.append((seconds - reading) / rounds)
        num_rounds += rounds
    seconds_per_step = min(steps[1:])
    rounds_per_token = num_rounds / (len(steps) * (num_tokens - 1))
    return StepTime(
        batch_size=batch_size,
        seconds_per_step=seconds_per_step,
        seconds_per_token=seconds_per_step * rounds_per_token,
    )


def _decode(llm: Any, batch: Sequence[Sequence[int]], num_tokens: int) -> tuple[float, float]:
    """Seconds, and steps or rounds per request on average."""
    import vllm

    sampling = vllm.SamplingParams(
        temperature=1.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
    )
    start = time.perf_counter()
    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt)} for prompt in batch], sampling, use_tqdm=False
    )
    seconds = time.perf_counter() - start
    rounds = [
        len(metrics.per_step_accepted)
        if (metrics := output.outputs[0].spec_decode_metrics) is not None
        else num_tokens - 1
        for output in outputs
    ]
    return seconds, max(1.0, sum(rounds) / len(rounds))
