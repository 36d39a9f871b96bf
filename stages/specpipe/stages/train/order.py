"""Which samples make which step: a pure function of dump, settings, seed and epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from specpipe.schemas.checkpoint import TrainState
from specpipe.schemas.train_config import TrainConfig
from specpipe.stages.drafter.sample_reader import SampleReader, SampleRef
from specpipe.stages.drafter.shard_window import Read

Batches = list[list[SampleRef]]


@dataclass(frozen=True, slots=True)
class StepRead(Read):
    """What one optimiser step reads, and its place."""

    epoch: int
    index: int
    """Of the step in its epoch."""


def planned_reads(
    config: TrainConfig,
    state: TrainState,
    reader: SampleReader,
    training: Sequence[SampleRef],
    evaluation: Sequence[Read],
) -> Iterator[Read]:
    """All that the run reads after `state`, in order: its steps, and the evaluations among them."""
    if state.step == 0:
        yield from evaluation
    step, epoch, index = state.step, state.epoch, state.batch_in_epoch
    while step < state.total_steps:
        batches = epoch_batches(
            training, config.seed, epoch, config.batch_tokens, config.batch_size
        )
        for at in range(index, len(batches)):
            if step == state.total_steps:
                return
            yield StepRead(reader, batches[at], False, epoch, at)
            step += 1
            if evaluates_after(step, state.total_steps, config):
                yield from evaluation
        epoch, index = epoch + 1, 0


def evaluation_reads(
    reader: SampleReader, refs: Sequence[SampleRef], batch_tokens: int
) -> list[Read]:
    """What one evaluation reads, in the order of the dump."""
    is_sparse = reader.is_sparse(refs)
    return [Read(reader, batch, is_sparse) for batch in pack(sorted(refs), batch_tokens)]


def eval_every(total_steps: int, config: TrainConfig) -> int:
    return config.eval_every or max(1, total_steps // 10)


def evaluates_after(step: int, total_steps: int, config: TrainConfig) -> bool:
    return step % eval_every(total_steps, config) == 0 or step == total_steps


def epoch_batches(
    refs: Sequence[SampleRef], seed: int, epoch: int, batch_tokens: int, batch_size: int | None
) -> Batches:
    """The steps of one epoch, each a list of whole samples.

    Shards in random order, samples in random order inside their shard, so that each shard is read
    once. A step takes samples while they fit `batch_tokens` (at least one), or `batch_size`
    samples.
    """
    rng = np.random.default_rng([seed, epoch])
    shards: dict[int, list[SampleRef]] = {}
    for ref in refs:
        shards.setdefault(ref.shard_id, []).append(ref)
    shard_ids = sorted(shards)
    order = [shard_ids[i] for i in rng.permutation(len(shard_ids))]
    shuffled = [shards[s][i] for s in order for i in rng.permutation(len(shards[s]))]
    return pack(shuffled, batch_tokens, batch_size)


def pack(refs: Sequence[SampleRef], batch_tokens: int, batch_size: int | None = None) -> Batches:
    """Consecutive samples into steps."""
    batches: Batches = []
    used = 0
    for ref in refs:
        full = (
            len(batches[-1]) >= batch_size
            if batches and batch_size is not None
            else used + ref.num_tokens > batch_tokens
        )
        if not batches or full:
            batches.append([])
            used = 0
        batches[-1].append(ref)
        used += ref.num_tokens
    return batches
