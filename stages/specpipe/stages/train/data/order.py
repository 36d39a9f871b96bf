"""Which samples make which step: a pure function of dump, settings, seed and epoch.

It is the same for every number of ranks: they share out the packs of each step.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specpipe.schemas.records.checkpoint import TrainState
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.samples.shard_window import Read
from specpipe.stages.train.data.packing import Batches, epoch_batches, pack


@dataclass(frozen=True, slots=True)
class PlannedRead(Read):
    """A read of training, or of an evaluation."""

    step: int | None
    """The step, from 1, that trains on it; None: an evaluation."""


@dataclass(frozen=True, slots=True)
class Step:
    """The samples of one optimiser step, in packs that are walked one by one, and its place."""

    epoch: int
    index: int
    """In its epoch."""
    packs: Batches

    @property
    def num_tokens(self) -> int:
        return sum(ref.num_tokens for pack in self.packs for ref in pack)


def planned_steps(
    config: ResolvedTrainConfig, state: TrainState, training: Sequence[SampleRef]
) -> Iterator[Step]:
    """The steps after `state`, in order."""
    step, epoch, index = state.step, state.epoch, state.batch_in_epoch
    while step < state.total_steps:
        batches = epoch_batches(
            training, config.seed, epoch, config.batch_tokens, config.batch_size
        )
        for at in range(index, len(batches)):
            if step == state.total_steps:
                return
            yield Step(epoch, at, pack(batches[at], config.pack_tokens or sys.maxsize))
            step += 1
        epoch, index = epoch + 1, 0


def planned_reads(
    config: ResolvedTrainConfig,
    state: TrainState,
    reader: SampleReader,
    training: Sequence[SampleRef],
    evaluation: Sequence[PlannedRead],
    share: slice,
) -> Iterator[PlannedRead]:
    """What a rank reads after `state`, in order: its packs of each step, and the evaluations.

    `share` picks the rank's packs of a step; `evaluation` is the rank's part of one evaluation.
    """
    if state.eval_due:
        yield from evaluation
    is_sparse = not reader.has_room(config.prefetch_mib) or (
        share.step > 1 and reader.is_sparse(training, share.step)
    )
    steps = planned_steps(config, state, training)
    for number, step in enumerate(steps, start=state.step + 1):
        for refs in step.packs[share]:
            yield PlannedRead(reader, refs, is_sparse, number)
        if evaluates_after(number, state.total_steps, config):
            yield from evaluation


def evaluation_reads(
    reader: SampleReader, refs: Sequence[SampleRef], batch_tokens: int, num_ranks: int = 1
) -> list[PlannedRead]:
    """What one evaluation reads on all ranks, in the order of the dump."""
    is_sparse = reader.is_sparse(refs, num_ranks)
    return [
        PlannedRead(reader, batch, is_sparse, None) for batch in pack(sorted(refs), batch_tokens)
    ]


def eval_every(total_steps: int, config: TrainConfig) -> int:
    return config.eval_every or max(1, total_steps // 10)


def evaluates_after(step: int, total_steps: int, config: TrainConfig) -> bool:
    return step % eval_every(total_steps, config) == 0 or step == total_steps
