"""Seconds of a decoding step of a running engine, by batch size and number of draft tokens."""

import time
from collections.abc import Iterator, Sequence
from itertools import count, cycle, islice
from statistics import quantiles
from typing import Any

from specpipe.schemas.errors import ValidationError
from specpipe.schemas.records.served import StepTime
from specpipe.stages.validate.serve.counters import read_counters

_ROUNDS = 12
_STEPS_TO_CHANGE = 2
"""Until a step verifies, and proposes, the new number of drafts."""
_TIMED_STEPS = 3


def step_times(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    batch_sizes: Sequence[int],
    counts: Sequence[int | None],
) -> list[StepTime]:
    """Decode batches of each size at temperature 1, with each of these numbers of draft tokens.

    None: the engine has no drafter. Several: it must have been started with a schedule of draft
    tokens, which is overwritten; one is the engine's own. Prompts are taken again where they are
    few. The numbers take turns of a few steps within a running batch, so that a machine that is
    slow for a while is slow for all of them; what else it does only adds to a step, so that the
    lower quartile counts.
    Raises ValidationError where vLLM drafts other numbers of tokens than it was told.
    """
    batches = _Batches(llm, prompts, num_tokens)
    found = []
    for size in batch_sizes:
        seconds: dict[int | None, list[float]] = {number: [] for number in counts}
        for number in [*counts] * _ROUNDS:
            if number is not None and len(counts) > 1:
                _draft(llm, number)
            seconds[number] += batches.steps(size, number)
        batches.end()
        found += [
            StepTime(
                batch_size=size,
                num_draft_tokens=number,
                seconds_per_step=quantiles(of_steps, n=4)[0],
            )
            for number, of_steps in seconds.items()
        ]
    return found


def _draft(llm: Any, num_draft_tokens: int) -> None:
    """From the next step on, whatever the batch."""
    # vLLM has no setting for a running engine; this one is in this process, with its table from
    # batch size to draft tokens.
    lookup = llm.llm_engine.engine_core.engine_core.scheduler.dynamic_sd_lookup
    lookup[:] = [num_draft_tokens] * len(lookup)


class _Batches:
    """Requests that decode together, step by step; new ones where one has come to its end."""

    def __init__(self, llm: Any, prompts: Sequence[Sequence[int]], num_tokens: int) -> None:
        self._llm, self._engine = llm, llm.llm_engine
        self._prompts = cycle(prompts)
        self._num_tokens = num_tokens
        self._ids: Iterator[int] = count()
        self._running: list[str] = []

    def steps(self, size: int, num_draft_tokens: int | None) -> list[float]:
        """Seconds of some steps in which every request of the batch decodes."""
        if not self._running:
            self._begin(size)
        for _ in range(_STEPS_TO_CHANGE):
            if self._step():
                # Too short for more: what is measured next begins anew.
                self.end()
                self._begin(size)
        before = None if num_draft_tokens is None else read_counters(self._llm)
        seconds: list[float] = []
        while len(seconds) < _TIMED_STEPS:
            start = time.perf_counter()
            is_over = self._step()
            seconds.append(time.perf_counter() - start)
            if is_over:
                self.end()
                break
        if before is not None:
            made = read_counters(self._llm).minus(before)
            if made.num_draft_tokens != made.num_drafts * (num_draft_tokens or 0):
                raise ValidationError(
                    f"vLLM drafted {made.num_draft_tokens} tokens in {made.num_drafts} rounds, not"
                    f" {num_draft_tokens} in each: its step times cannot be told apart"
                )
        return seconds

    def end(self) -> None:
        self._engine.abort_request(self._running, internal=True)
        self._running = []
        while self._engine.has_unfinished_requests():
            self._engine.step()

    def _begin(self, size: int) -> None:
        import vllm

        sampling = vllm.SamplingParams(
            temperature=1.0, max_tokens=self._num_tokens, ignore_eos=True, detokenize=False
        )
        self._running = [
            self._engine.add_request(
                f"timed-{next(self._ids)}", {"prompt_token_ids": list(prompt)}, sampling
            )
            for prompt in islice(self._prompts, size)
        ]
        has_begun: set[str] = set()
        while len(has_begun) < size:
            has_begun |= {output.request_id for output in self._engine.step()}

    def _step(self) -> bool:
        """Whether a request has come to its end."""
        return any(output.finished for output in self._engine.step())
