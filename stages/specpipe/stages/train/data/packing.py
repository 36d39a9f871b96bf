"""The samples of an epoch, shuffled and packed into steps: a pure function of them, seed and epoch.

The shuffle has two levels: shards come in random order, a few at a time, and each next sample is a
random one of a random shard among those. So a step is of several shards, and no more of them are
needed at once than fit into memory.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from specpipe.stages.samples.reader import SHARDS_TOGETHER, SampleRef

Batches = list[list[SampleRef]]

_LOOK_AHEAD = 64
"""Samples that are passed over, for the first that fits: enough for little waste, and so few that
they keep hardly a shard in memory longer."""


def epoch_batches(
    refs: Sequence[SampleRef], seed: int, epoch: int, batch_tokens: int, batch_size: int | None
) -> Batches:
    """The steps of one epoch, each a list of whole samples.

    A step takes samples while any of the next ones fits `batch_tokens` (at least one), or
    `batch_size` samples.
    """
    rng = np.random.default_rng([seed, epoch])
    shards: dict[int, list[SampleRef]] = {}
    for ref in _taken(refs, seed, epoch):
        shards.setdefault(ref.shard_id, []).append(ref)
    shard_ids = sorted(shards)
    order = [shards[shard_ids[at]] for at in rng.permutation(len(shard_ids))]
    shuffled = ([shard[at] for at in rng.permutation(len(shard))] for shard in order)
    return pack(_interleaved(shuffled, rng), batch_tokens, batch_size)


def pack(refs: Iterable[SampleRef], batch_tokens: int, batch_size: int | None = None) -> Batches:
    """Samples into steps, in their order but for those that wait until there is room for them."""
    rest, batches = iter(refs), Batches()
    waiting: deque[SampleRef] = deque()
    while True:
        batch: list[SampleRef] = []
        passed: deque[SampleRef] = deque()
        num_tokens = 0
        while len(passed) < _LOOK_AHEAD:
            ref = waiting.popleft() if waiting else next(rest, None)
            if ref is None:
                break
            if batch and batch_size is None and num_tokens + ref.num_tokens > batch_tokens:
                passed.append(ref)
                continue
            batch.append(ref)
            num_tokens += ref.num_tokens
            if len(batch) == batch_size or (batch_size is None and num_tokens >= batch_tokens):
                break
        if not batch:
            return batches
        batches.append(batch)
        waiting = passed + waiting


def _interleaved(
    shards: Iterator[list[SampleRef]], rng: np.random.Generator
) -> Iterator[SampleRef]:
    together: list[list[SampleRef]] = []
    while True:
        while len(together) < SHARDS_TOGETHER and (shard := next(shards, None)) is not None:
            together.append(shard)
        if not together:
            return
        at = int(rng.integers(len(together)))
        yield together[at].pop()
        if not together[at]:
            del together[at]


def _taken(refs: Sequence[SampleRef], seed: int, epoch: int) -> Iterator[SampleRef]:
    """What the epoch takes of the samples, those of a weight above 1 several times.

    Of n samples of weight w, the first e epochs together take each one e * w times, rounded up or
    down, and every epoch n * w samples, up to one.
    """
    weights = sorted({ref.weight for ref in refs})
    for weight in weights:
        of_weight = [ref for ref in refs if ref.weight == weight]
        # The same in every epoch: what one leaves out the next ones take.
        ranks = np.random.default_rng([seed, weights.index(weight), 1]).permutation(len(of_weight))
        for ref, rank in zip(of_weight, ranks.tolist(), strict=True):
            phase = (rank + 0.5) / len(of_weight)
            times = math.floor((epoch + 1) * weight + phase) - math.floor(epoch * weight + phase)
            yield from [ref] * times
