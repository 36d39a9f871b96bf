"""Seconds of a decoding step of a running engine, by batch size and number of draft tokens."""

import time
from collections.abc import Sequence
from itertools import count, product
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict

from specpipe.schemas.errors import ValidationError
from specpipe.stages.export.counters import read_counters

_PASSES = 5
_STEPS = 8


class StepTime(BaseModel):
    """One batch size and number of draft tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int
    num_draft_tokens: int | None
    """0: a drafter is loaded and only follows the text; None: an engine without one."""
    seconds_per_step: float
    """A step of the target, or a round of drafts and their verification, for the whole batch."""


def step_times(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    batch_sizes: Sequence[int],
    most_draft_tokens: int,
) -> list[StepTime]:
    """Decode batches of each size at temperature 1, with 0 to `most_draft_tokens` draft tokens.

    Where that is 0 the engine has no drafter; any other must have been started with a schedule of
    draft tokens, which is overwritten. Prompts are taken again where they are few. All cases take
    turns, so that a machine that is slow for a while is slow for all of them; what else it does
    only adds to a step, so that the fastest of five passes counts, after one that warms up.
    Raises ValidationError where vLLM drafts other numbers of tokens than it was told.
    """
    counts: Sequence[int | None] = range(most_draft_tokens + 1) if most_draft_tokens else [None]
    fastest = dict.fromkeys(product(batch_sizes, counts), float("inf"))
    ids = count()
    for number in range(1 + _PASSES):
        for size, num_drafts in fastest:
            batch = [prompts[(number * size + at) % len(prompts)] for at in range(size)]
            names = [f"timed-{next(ids)}" for _ in batch]
            if num_drafts is None:
                seconds = _seconds_per_step(llm, names, batch, num_tokens)
            else:
                seconds = _drafting(llm, names, batch, num_tokens, num_drafts)
            if number > 0:
                fastest[size, num_drafts] = min(fastest[size, num_drafts], seconds)
    return [
        StepTime(batch_size=size, num_draft_tokens=num_drafts, seconds_per_step=seconds)
        for (size, num_drafts), seconds in fastest.items()
    ]


def _drafting(
    llm: Any, names: Sequence[str], batch: Sequence[Sequence[int]], num_tokens: int, num_drafts: int
) -> float:
    # vLLM has no setting for a running engine; this one is in this process, with its table from
    # batch size to draft tokens.
    lookup = llm.llm_engine.engine_core.engine_core.scheduler.dynamic_sd_lookup
    lookup[:] = [num_drafts] * len(lookup)
    before = read_counters(llm)
    seconds = _seconds_per_step(llm, names, batch, num_tokens)
    made = read_counters(llm).minus(before)
    # Of an engine that schedules ahead, one step of the batch before may still be counted.
    of_a_round = made.num_draft_tokens / max(1, made.num_drafts)
    obeys = round(of_a_round) == num_drafts if num_drafts else made.num_drafts <= len(batch)
    if not obeys:
        raise ValidationError(
            f"vLLM drafted {of_a_round:.2f} tokens in each of {made.num_drafts} rounds, not"
            f" {num_drafts}: its step times cannot be told apart"
        )
    return seconds


def _seconds_per_step(
    llm: Any, names: Sequence[str], batch: Sequence[Sequence[int]], num_tokens: int
) -> float:
    """The median of some steps in which every request of the batch decodes."""
    import vllm

    sampling = vllm.SamplingParams(
        temperature=1.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
    )
    engine = llm.llm_engine
    requests = [
        engine.add_request(name, {"prompt_token_ids": list(prompt)}, sampling)
        for name, prompt in zip(names, batch, strict=True)
    ]
    has_begun: set[str] = set()
    while len(has_begun) < len(batch):
        has_begun |= {output.request_id for output in engine.step()}
    seconds: list[float] = []
    while len(seconds) < _STEPS:
        start = time.perf_counter()
        outputs = engine.step()
        seconds.append(time.perf_counter() - start)
        if any(output.finished for output in outputs):
            break
    engine.abort_request(requests, internal=True)
    while engine.has_unfinished_requests():
        engine.step()
    return median(seconds)
