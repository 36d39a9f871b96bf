"""Reading ahead: the right samples, within the budget, and errors when their turn comes."""

import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from specpipe.schemas.errors import IntegrityError
from specpipe.stages.samples.batch import DrafterSample, make_batch
from specpipe.stages.samples.read_ahead import ReadAhead, copies, read_samples
from specpipe.stages.samples.reader import SampleReader, SampleRef, Samples, WholeShard
from specpipe.stages.samples.shard_window import Read, ShardWindow
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.buffer_pool import BufferPool
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.train.data.order import evaluation_reads
from specpipe.stages.train.data.packing import epoch_batches
from tests.s3 import S3Server
from tests.storage.damages import copy_objects
from tests.storage.tiny import make_identity, make_pair, write_dump

NUM_SHARDS = 9


def count(_: Read, samples: list[DrafterSample]) -> int:
    return len(samples)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump of shards of different sizes, the fourth the largest by far."""
    identity = make_identity()
    shards = [
        [
            make_pair(identity, 10 * shard + at, 12 + shard, [(4, 12 + shard)])
            for at in range(20 if shard == 3 else 4)
        ]
        for shard in range(NUM_SHARDS)
    ]
    root = tmp_path_factory.mktemp("ahead") / "dump"
    write_dump(str(root), identity, shards)
    return root


class CountingReader(SampleReader):
    """Counts what it opens, and the bytes of whole shards from their opening to their end."""

    def __init__(self, dump: Dump) -> None:
        super().__init__(dump, None)
        self.opened: Counter[int] = Counter()
        self.num_bytes = self.most_bytes = 0
        self._lock = threading.Lock()

    def whole(self, shard_id: int, pool: BufferPool | None = None) -> WholeShard:
        # A thread that has just handed over another shard may not have let go of it yet.
        time.sleep(0.001)
        size = self.whole_bytes(shard_id)
        self._count(size)
        with self._lock:
            self.opened[shard_id] += 1
        shard = super().whole(shard_id, pool)
        weakref.finalize(shard.states.aux_TLH, self._count, -size)
        return shard

    def some(self, shard_id: int, refs: Sequence[SampleRef]) -> Samples:
        raise AssertionError("these reads are of whole shards")

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes
            self.most_bytes = max(self.most_bytes, self.num_bytes)


def run_of(reader: SampleReader, num_epochs: int, *, sparse: bool = False) -> list[Read]:
    """Epochs of steps, an evaluation after each."""
    refs = reader.refs()
    evaluated = refs[::7]
    reads = []
    for epoch in range(num_epochs):
        reads += [Read(reader, b, False) for b in epoch_batches(refs, 1, epoch, 100, None)]
        reads += (
            evaluation_reads(reader, evaluated, 100)
            if sparse
            else [Read(reader, evaluated[at : at + 3], False) for at in range(0, len(evaluated), 3)]
        )
    return reads


def equal_samples(first: DrafterSample, second: DrafterSample) -> bool:
    arrays = [
        (getattr(a, field.name), getattr(b, field.name))
        for a, b in ((first, second), (first.states, second.states))
        for field in fields(a)
    ]
    return all(np.array_equal(a, b) for a, b in arrays if isinstance(a, np.ndarray))


def sizes(reader: SampleReader) -> list[int]:
    return [reader.whole_bytes(shard_id) for shard_id in reader.dump.manifests]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.8, 1])
def test_shards_in_memory_and_under_way_stay_within_the_budget(share: float, root: Path) -> None:
    reader = CountingReader(Dump.open(str(root)))
    largest, total = max(sizes(reader)), sum(sizes(reader))
    budget = int(share * total)
    reads = run_of(reader, 3)
    window = ShardWindow(reads, count, budget)
    made = [(read, number) for read, number in window]
    window.close()
    assert made == [(read, len(read.refs)) for read in reads]
    assert reader.most_bytes <= max(budget, largest)
    assert reader.most_bytes > 0.6 * budget  # it is used, too
    if share == 1:
        assert set(reader.opened.values()) == {1}
    elif share == 0:
        # Once in every epoch at the least: shards that are used together do not fit together.
        assert all(times >= 3 for times in reader.opened.values())
    del window
    assert reader.num_bytes == 0


def test_the_bytes_that_are_counted_are_those_of_the_arrays(root: Path) -> None:
    reader = SampleReader(Dump.open(str(root)), None)
    for shard_id in reader.dump.manifests:
        shard = reader.whole(shard_id)
        arrays = [getattr(shard.states, field.name) for field in fields(shard.states)]
        arrays += [a for sample in shard.stored for a in (sample.input_ids, sample.loss_mask)]
        assert sum(a.nbytes for a in arrays if a is not None) == reader.whole_bytes(shard_id)


@pytest.mark.parametrize("context_length", [None, 11])
@pytest.mark.parametrize("budget", [0, 3_000, 2**20])
def test_the_samples_are_those_of_the_dump(
    budget: int, context_length: int | None, root: Path
) -> None:
    reader = SampleReader(Dump.open(str(root)), context_length)
    window = ShardWindow(run_of(reader, 1, sparse=True), copies, budget)
    num_sparse = 0
    for read, samples in window:
        num_sparse += read.is_sparse
        for ref, sample in zip(read.refs, samples, strict=True):
            shard = reader.dump.shard(ref.shard_id)
            stored = shard.samples()[ref.index]
            states = shard.read_sample(stored)
            length = min(stored.num_tokens, context_length or stored.num_tokens)
            num_rows = sum(stored.loss_mask[1:length])
            assert sample.input_ids.tolist() == stored.input_ids[:length].tolist()
            assert sample.loss_mask.tolist() == stored.loss_mask[:length].tolist()
            assert sample.weight == stored.multiplicity
            assert sample.states.aux_TLH.tobytes() == states.aux_TLH[:length].tobytes()
            for name in ("final_SH", "logz_S", "token_logprob_S", "argmax_S"):
                rows = getattr(states, name)[:num_rows]
                assert getattr(sample.states, name).tobytes() == rows.tobytes()
    window.close()
    assert num_sparse


class KeepingReader(SampleReader):
    """Remembers the shards that it opens."""

    def __init__(self, dump: Dump) -> None:
        super().__init__(dump, None)
        self.shards: list[WholeShard] = []

    def whole(self, shard_id: int, pool: BufferPool | None = None) -> WholeShard:
        self.shards.append(super().whole(shard_id, pool))
        return self.shards[-1]


@pytest.mark.parametrize("budget", [0, 3_000, 2**20])
def test_a_batch_keeps_nothing_of_the_shards(budget: int, root: Path) -> None:
    """What becomes of a shard's memory does not reach a batch that was made of it."""
    reader = KeepingReader(Dump.open(str(root)))
    plan = run_of(reader, 1)
    pool = BufferPool(2**20)
    window = ShardWindow(plan, lambda _, samples: make_batch(samples, 2, pool), budget)
    batches = [batch for _, batch in window]
    window.close()
    for shard in reader.shards:
        for array in shard.states.columns().values():
            array.view(np.uint8)[...] = 0xA5
    for read, batch in zip(plan, batches, strict=True):
        expected = make_batch(list(_in_order(read.reader.dump, read.refs)), 2)
        ours, theirs = batch.tensors(), expected.tensors()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _in_order(dump: Dump, refs: Sequence[SampleRef]) -> Iterator[DrafterSample]:
    reader = SampleReader(dump, None)
    for ref in refs:
        yield reader.some(ref.shard_id, [ref])[ref.index]


def test_few_samples_of_many_shards_are_read_alone(
    root: Path, s3_root: str, s3_server: S3Server
) -> None:
    copy_objects(Folder.open(str(root)), Folder.open(s3_root))
    reader = SampleReader(Dump.open(s3_root), None)
    refs = reader.refs()
    assert not reader.is_sparse(refs)
    few = refs[::11]
    assert reader.is_sparse(few)
    s3_server.clear()
    samples = list(read_samples(reader, few))
    aux = [request for request in s3_server.requests if "/aux_" in request.path]
    ends = [map(int, r.headers["range"].removeprefix("bytes=").split("-")) for r in aux]
    num_bytes = sum(stop - start + 1 for start, stop in ends)
    assert num_bytes == sum(sample.states.aux_TLH.nbytes for sample in samples)
    local = SampleReader(Dump.open(str(root)), None)
    whole = {
        (ref.shard_id, ref.index): sample
        for ref, sample in zip(refs, read_samples(local, refs), strict=True)
    }
    for ref, sample in zip(few, samples, strict=True):
        assert equal_samples(sample, whole[ref.shard_id, ref.index])


def reading_threads() -> list[threading.Thread]:
    names = ("specpipe-read", "specpipe-batch")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def check_threads_end() -> None:
    while threads := reading_threads():
        threads[0].join(30)
        assert not threads[0].is_alive()


@pytest.mark.parametrize("prefetch_mib", [0, 64])
def test_an_error_is_raised_by_the_read_that_needs_what_is_damaged(
    prefetch_mib: int, root: Path, tmp_path: Path
) -> None:
    copy = Folder.open(str(tmp_path / "dump"))
    copy_objects(Folder.open(str(root)), copy)
    reader = SampleReader(Dump.open(str(tmp_path / "dump")), None)
    plan = run_of(reader, 1)
    first_use: dict[int, int] = {}
    for at, read in enumerate(plan):
        for ref in read.refs:
            first_use.setdefault(ref.shard_id, at)
    damaged, sound = max(first_use.items(), key=lambda item: item[1])
    folder = reader.dump.manifests[damaged].folder
    key = next(key for key in copy.list(folder) if "/aux_1/c/" in key)
    data = bytearray(copy.read(key))
    data[3] ^= 1
    copy.write(key, bytes(data))
    assert sound > 2
    given = 0
    with ReadAhead(plan, count, prefetch_mib) as ahead:
        for _, (read, num_samples) in zip(range(sound), ahead, strict=False):
            assert read is plan[given]
            assert num_samples == len(read.refs)
            given += 1
        assert given == sound
        for _ in range(2):
            with pytest.raises(IntegrityError, match="aux"):
                next(ahead)
    check_threads_end()


def test_an_end_before_the_end_of_the_plan_leaves_no_thread(root: Path) -> None:
    reader = SampleReader(Dump.open(str(root)), None)
    with ReadAhead(run_of(reader, 50), count, 64) as ahead:
        next(ahead)
        assert reading_threads()
    check_threads_end()
    samples = read_samples(reader, reader.refs())
    next(samples)
    del samples
    check_threads_end()


def test_waiting_is_counted(root: Path) -> None:
    reader = SampleReader(Dump.open(str(root)), None)
    plan = run_of(reader, 1)[:4]

    def slow(_: Read, samples: list[DrafterSample]) -> int:
        time.sleep(0.02)
        return len(samples)

    with ReadAhead(plan, slow, 0) as ahead:
        assert not ahead.is_ready(0.001)
        assert [number for _, number in ahead] == [len(read.refs) for read in plan]
    assert ahead.seconds_waited >= 4 * 0.02
