"""Stores that fail: for a moment, for good, slowly, or after all was done."""

import random
import threading
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest

from specpipe.schemas.errors import StoreError
from specpipe.stages.storage.chunks.arrays import planned_chunks, shard_arrays
from specpipe.stages.storage.chunks.codec import buffer_bytes
from specpipe.stages.storage.shard import outbox
from specpipe.stages.storage.shard.reader import ShardReader
from specpipe.stages.storage.shard.writer import ShardAttempt, ShardWriter
from specpipe.stages.storage.store import retry
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.retry import RetryPolicy
from specpipe.stages.upkeep.verify.run import verify
from tests.s3 import Fault, Request, S3Server
from tests.storage.damages import FORMATS
from tests.storage.tiny import (
    concatenated,
    equal_states,
    make_identity,
    make_pair,
    make_shards,
    use_everything,
    vocab_of,
    write_dump,
    write_shard,
    write_tiny_scales,
)

NUM_TRIES = 5


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of tries, one after the other, instead of two minutes of them."""
    policy = RetryPolicy(patience=0.0, least_tries=NUM_TRIES, first_wait=0.001)
    monkeypatch.setattr(retry, "DEFAULT_POLICY", policy)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("format", FORMATS)
def test_a_tenth_of_all_requests_fails(format: str, s3_server: S3Server, s3_root: str) -> None:
    identity = make_identity(**FORMATS[format])
    shards = make_shards(identity)[:1]
    undisturbed = write_dump(f"memory://{s3_root.removeprefix('s3://')}", identity, shards)
    chance = random.Random(format)
    kinds: tuple[Fault, ...] = ("500", "503", "cut", "lost")
    num_failed = 0

    def fault(request: Request) -> Fault | None:
        nonlocal num_failed
        if chance.random() >= 0.1:
            return None
        num_failed += 1
        return chance.choice(kinds)

    s3_server.fault = fault
    folder = write_dump(s3_root, identity, shards)
    assert verify(s3_root).damages == ()
    use_everything(s3_root)
    assert num_failed > len(s3_server.requests) // 20
    s3_server.clear()
    assert {key: folder.read(key) for key in folder.list()} == {
        key: undisturbed.read(key) for key in undisturbed.list()
    }


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("gone", ["500", "503", "lost"])
def test_a_store_that_dies_for_good(gone: Fault, s3_server: S3Server, s3_root: str) -> None:
    identity = make_identity()
    folder = Folder.open(s3_root)
    pairs = make_shards(identity)[0]
    s3_server.fault = lambda request: gone if "/aux_1/" in request.path else None
    with pytest.raises(StoreError) as raised:
        write_shard(folder, identity, 0, pairs)
    assert raised.value.exit_code == 6
    text = str(raised.value)
    assert "cannot write s3://" in text
    assert "/states.zarr/aux_1/" in text
    assert f"tried {NUM_TRIES} times" in text
    assert "run the same command again when the store answers" in text
    tries = Counter(request.key for request in s3_server.requests if "/aux_1/" in request.path)
    assert max(tries.values()) == NUM_TRIES
    assert not folder.exists("shards/000000.manifest.json")

    s3_server.clear()
    manifest = write_shard(folder, identity, 0, pairs)
    states = ShardReader(folder, identity, manifest).read_all()
    assert equal_states(states, concatenated([states for _, states in pairs]))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("lost", [1, 2])
def test_a_create_whose_answer_is_lost_was_ours(
    lost: int, s3_server: S3Server, s3_root: str
) -> None:
    folder = Folder.open(s3_root)
    num_puts = 0

    def fault(request: Request) -> Fault | None:
        nonlocal num_puts
        num_puts += request.method == "PUT"
        return "lost" if request.method == "PUT" and num_puts <= lost else None

    s3_server.fault = fault
    assert folder.create("manifest", b"ours")
    assert folder.read("manifest") == b"ours"


@pytest.mark.usefixtures("impatient")
def test_a_create_whose_try_failed_may_come_after_anothers(
    s3_server: S3Server, s3_root: str
) -> None:
    folder = Folder.open(s3_root)
    others = Folder.open(s3_root)
    num_puts = 0

    def fault(request: Request) -> Fault | None:
        nonlocal num_puts
        num_puts += request.method == "PUT"
        if request.method == "PUT" and num_puts == 1:
            # While ours fails, somebody else's comes through; longer, and it begins like ours.
            assert others.create("manifest", b"ours and more")
            return "500"
        return None

    s3_server.fault = fault
    assert not folder.create("manifest", b"ours")
    assert folder.read("manifest") == b"ours and more"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", ["403", "404"])
def test_what_stays_is_not_tried_again(status: Fault, s3_server: S3Server, s3_root: str) -> None:
    folder = Folder.open(s3_root)
    s3_server.fault = lambda request: status
    for action in (folder.write, folder.create):
        s3_server.requests.clear()
        with pytest.raises(StoreError, match=r"cannot (write|create) s3://.*/object: .*again"):
            action("object", b"data")
        assert s3_server.methods() == ["PUT"]
    s3_server.requests.clear()
    with pytest.raises((StoreError, ValueError), match="object"):
        folder.read("object", 0, 4, num_expected=4)
    assert len(s3_server.requests) <= 2


class CountedBuffers:
    """numpy for the outbox: knows how many bytes of its buffers live, whoever holds them."""

    uint8 = np.uint8

    def __init__(self) -> None:
        self.num_bytes = self.most_bytes = 0
        self._lock = threading.Lock()

    def empty(self, size: int, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
        buffer = np.empty(size, dtype)
        self._count(size)
        weakref.finalize(buffer, self._count, -size)
        return buffer

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes
            self.most_bytes = max(self.most_bytes, self.num_bytes)


@pytest.mark.parametrize("num_buffers", [0, 8, 10_000])
@pytest.mark.parametrize("format", ["zarr", "parquet", "zarr zstd int8 topk"])
def test_a_slow_store_makes_the_writer_wait_and_fills_no_memory(
    format: str,
    num_buffers: int,
    s3_server: S3Server,
    s3_root: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store answers nothing until the writer waits for it, or has said all."""
    counted = CountedBuffers()
    monkeypatch.setattr(outbox, "np", counted)
    identity = make_identity(chunk_tokens=24, hidden=64, **FORMATS[format])
    pairs = [make_pair(identity, seed, 40, [(8, 40)]) for seed in range(12)]
    folder = Folder.open(s3_root)
    scales = write_tiny_scales(folder, identity)
    arrays = shard_arrays(identity, 480, 384, planned_chunks(identity, 480, 384))
    sizes = {name: buffer_bytes(array) for name, array in arrays.items()}
    budget = num_buffers * max(sizes.values())
    writer = ShardWriter(
        ShardAttempt(folder, 0),
        identity,
        480,
        384,
        scales=scales,
        write_buffer_bytes=budget,
    )
    waits, is_over, answers = threading.Event(), threading.Event(), threading.Event()
    changed = writer._outbox._changed
    wait = changed.wait

    def told(timeout: float | None = None) -> bool:
        waits.set()
        is_over.set()
        return wait(timeout)

    monkeypatch.setattr(changed, "wait", told)

    def fault(request: Request) -> None:
        if request.method == "PUT":
            answers.wait()

    s3_server.fault = fault

    def append() -> None:
        try:
            for pair in pairs:
                writer.append(*pair)
        finally:
            is_over.set()

    appending = threading.Thread(target=append)
    appending.start()
    is_over.wait()
    has_waited = waits.is_set()
    answers.set()
    appending.join()
    manifest = writer.commit(vocab_of(pairs))
    s3_server.clear()

    assert has_waited == (num_buffers < 10_000)
    # One chunk of each array is being filled at the same time, whatever the budget.
    least = sum(sizes.values()) + max(sizes.values())
    assert counted.most_bytes <= max(budget, least)
    if num_buffers == 10_000:
        assert counted.most_bytes > 20 * max(sizes.values())
    reader = ShardReader(folder, identity, manifest)
    assert len(reader.samples()) == len(pairs)
    assert reader.read_all().aux_TLH.shape[0] == 480
