"""Which samples make which step: a pure function of dump, settings, seed and epoch."""

from collections.abc import Sequence

import numpy as np

from specpipe.stages.drafter.sample_reader import SampleRef

Batches = list[list[SampleRef]]


def epoch_batches(
    refs: Sequence[SampleRef], seed: int, epoch: int, batch_tokens: int, batch_size: int | None
) -> Batches:
    """The steps of one epoch, each a list of whole samples.

    Shards in random order, samples in random order inside their shard, so that at most two shards
    are open at a time. A step takes samples while they fit `batch_tokens` (at least one), or
    `batch_size` samples.
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
