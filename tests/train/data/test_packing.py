"""The order of an epoch: complete, reproducible, mixed, and packed with little waste."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.stages.samples.reader import SampleRef
from specpipe.stages.train.data.packing import Batches, epoch_batches, pack


def refs_of(
    lengths: list[int], per_shard: int, weights: list[float] | None = None
) -> list[SampleRef]:
    return [
        SampleRef(
            at // per_shard, at % per_shard, length, f"{at:032x}", weights[at] if weights else 1.0
        )
        for at, length in enumerate(lengths)
    ]


def in_order(batches: Batches) -> list[SampleRef]:
    return [ref for batch in batches for ref in batch]


lengths = st.lists(st.integers(2, 120), min_size=1, max_size=300)


@settings(deadline=None)
@given(
    lengths=lengths,
    per_shard=st.integers(1, 60),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    batch_tokens=st.integers(50, 400),
    batch_size=st.none() | st.integers(1, 9),
)
def test_an_epoch_takes_every_sample_once_and_fills_no_step_beyond_its_room(
    lengths: list[int],
    per_shard: int,
    seed: int,
    epoch: int,
    batch_tokens: int,
    batch_size: int | None,
) -> None:
    refs = refs_of(lengths, per_shard)
    batches = epoch_batches(refs, seed, epoch, batch_tokens, batch_size)
    assert sorted(in_order(batches)) == refs
    assert batches == epoch_batches(list(refs), seed, epoch, batch_tokens, batch_size)
    if batch_size is not None:
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert 1 <= len(batches[-1]) <= batch_size
        return
    sizes = [sum(ref.num_tokens for ref in batch) for batch in batches]
    assert all(
        size <= batch_tokens or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True)
    )
    # What opens a step fitted into no step that was closed within sight of it.
    assert all(
        first + batch[0].num_tokens > batch_tokens
        for first, batch in zip(sizes[:-1], batches[1:], strict=True)
    )


def lengths_of(kind: str) -> list[int]:
    rng = np.random.default_rng(0)
    match kind:
        case "chat":
            drawn = rng.lognormal(6.2, 0.8, 4000).clip(16, 4096)
        case "short":
            drawn = rng.uniform(20, 200, 4000)
        case "long":
            drawn = rng.lognormal(7.6, 0.7, 2000).clip(64, 8192)
        case _:
            drawn = np.full(1000, 1000.0)
    return [int(length) for length in drawn]


@pytest.mark.parametrize(
    ("kind", "batch_tokens", "least"),
    [
        ("chat", 8192, 0.99),
        ("chat", 4096, 0.98),
        ("short", 2048, 0.99),
        ("long", 16384, 0.98),
        ("long", 8192, 0.93),
        ("one length", 8192, 8000 / 8192 - 1e-3),
    ],
)
def test_little_room_is_wasted(kind: str, batch_tokens: int, least: float) -> None:
    batches = epoch_batches(refs_of(lengths_of(kind), 60), 1, 0, batch_tokens, None)
    num_tokens = sum(ref.num_tokens for batch in batches for ref in batch)
    assert num_tokens / (len(batches) * batch_tokens) >= least


def test_a_step_is_of_several_shards_and_a_shard_is_needed_for_a_while_only() -> None:
    num_shards, per_shard = 40, 64
    refs = refs_of([128] * (num_shards * per_shard), per_shard)
    batches = epoch_batches(refs, 3, 0, 2048, None)
    mixed = [len({ref.shard_id for ref in batch}) for batch in batches]
    # At the very end there may be one shard left.
    assert np.mean([count >= 2 for count in mixed]) > 0.9
    last = {ref.shard_id: at for at, batch in enumerate(batches) for ref in batch}
    first = {ref.shard_id: at for at, batch in reversed([*enumerate(batches)]) for ref in batch}
    together = [sum(first[s] <= at <= last[s] for s in first) for at in range(len(batches))]
    assert max(together) <= 5
    assert np.mean(together) < 4.5
    orders = [
        [batch[0].shard_id for batch in epoch_batches(refs, 3, e, 2048, None)] for e in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_neighbours_in_a_shard_do_not_stay_neighbours() -> None:
    refs = refs_of([10] * 1000, 100)
    flat = in_order(epoch_batches(refs, 0, 0, 100, None))
    beside = sum(
        a.shard_id == b.shard_id and abs(a.index - b.index) == 1 for a, b in pairwise(flat)
    )
    assert beside < 40


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.75, 1.5, 3.0])
def test_a_weight_is_the_number_of_passes(weight: float) -> None:
    """Over epochs, every sample comes equally often, and every epoch has as many of them."""
    num = 200
    refs = refs_of([10] * 300, 50, [1.0] * 100 + [weight] * num)
    times: Counter[SampleRef] = Counter()
    for epoch in range(20):
        taken = in_order(epoch_batches(refs, 5, epoch, 100, None))
        assert taken == in_order(epoch_batches(refs, 5, epoch, 100, None))
        assert Counter(taken)[refs[0]] == 1
        assert abs(sum(ref.weight == weight for ref in taken) - weight * num) <= 1
        times.update(taken)
        so_far = [times[ref] for ref in refs[100:]]
        assert max(abs(count - (epoch + 1) * weight) for count in so_far) < 1


def test_samples_that_do_not_fit_wait_in_their_order() -> None:
    sizes = [60, 50, 45, 40, 30, 10]
    packed = pack(refs_of(sizes, 10), 100)
    assert [[ref.num_tokens for ref in batch] for batch in packed] == [[60, 40], [50, 45], [30, 10]]


def test_nothing_makes_no_step() -> None:
    assert pack([], 100) == []
