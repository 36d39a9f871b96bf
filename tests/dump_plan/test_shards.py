"""The plan is a pure function of the samples and the shard size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import plan_key
from specpipe.schemas.records.sample import Sample, Source, make_sample
from specpipe.stages.dump_plan.shards import input_sha256, make_plan, write_plan
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.batches import batches


def samples(lengths: list[int]) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        make_sample(rng.integers(0, 50, n), [0] + [1] * (n - 1), Source("f", at + 1), 50)
        for at, n in enumerate(lengths)
    ]


lengths = st.lists(st.integers(2, 60), min_size=1, max_size=40)


@given(lengths, st.integers(1, 150))
def test_shards_fill_in_input_order(lengths: list[int], shard_tokens: int) -> None:
    given_samples = samples(lengths)
    plan = make_plan(given_samples, shard_tokens)
    order = [s.source.line for shard in plan for s in sorted(shard, key=lambda s: s.source.line)]
    assert order == list(range(1, len(lengths) + 1))
    for shard, following in zip(plan, [*plan[1:], None], strict=True):
        num_tokens = sum(s.num_tokens for s in shard)
        assert num_tokens <= shard_tokens or len(shard) == 1
        if following is not None:
            first = min(following, key=lambda s: s.source.line)
            assert num_tokens + first.num_tokens > shard_tokens
        keys = [(s.num_tokens, s.sample_id) for s in shard]
        assert keys == sorted(keys)


@given(lengths, st.integers(1, 150))
def test_batches_keep_to_the_budget(lengths: list[int], batch_tokens: int) -> None:
    (shard,) = make_plan(samples(lengths), 10**6)
    made = list(batches(shard, batch_tokens))
    assert [s for batch in made for s in batch] == shard
    for batch in made:
        assert len(batch) * batch[-1].num_tokens <= batch_tokens or len(batch) == 1


def test_the_input_hash_sees_order_and_multiplicity() -> None:
    a, b = samples([5, 6])
    assert input_sha256([a, b]) != input_sha256([b, a])
    twice = Sample(a.input_ids, a.loss_mask, a.source, multiplicity=2)
    assert input_sha256([a]) != input_sha256([twice])
    moved = Sample(a.input_ids, a.loss_mask, Source("elsewhere", 3))
    assert input_sha256([a]) == input_sha256([moved])


def test_writing_twice_is_nothing_and_another_plan_is_refused() -> None:
    folder = Folder.open("memory://plans/one")
    plan = make_plan(samples([5, 6, 7]), 12)
    write_plan(folder, plan)
    before = {key: folder.read(key) for key in folder.list()}
    write_plan(folder, plan)
    moved = make_plan(
        [Sample(s.input_ids, s.loss_mask, Source("g", 1)) for s in samples([5, 6, 7])], 12
    )
    write_plan(folder, moved)
    assert {key: folder.read(key) for key in folder.list()} == before
    folder.write(plan_key(1), before[plan_key(0)])
    with pytest.raises(IntegrityError, match=r"000001\.parquet"):
        write_plan(folder, plan)
