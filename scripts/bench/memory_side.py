"""One measurement of part e, in a process of its own."""

import shutil
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.bench.child import Values, serve_parent
from scripts.bench.material import (
    VOCAB,
    Pair,
    ShardSize,
    header_of,
    identity_of,
    pairs,
    state_bytes,
)
from scripts.bench.resident import forget_peak, peak, resident
from specpipe.schemas.records.dump import DumpIdentity, manifest_key
from specpipe.stages.samples.read_ahead import ReadAhead, copies
from specpipe.stages.samples.reader import SampleReader
from specpipe.stages.samples.shard_window import Read
from specpipe.stages.storage.chunks.arrays import planned_chunks, shard_arrays
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.records import read_manifest
from specpipe.stages.storage.shard.writer import ShardAttempt, ShardWriter
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.local_disk import LocalDisk
from specpipe.stages.storage.store.retry import DEFAULT_POLICY
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.train.data.packing import epoch_batches

SLOW = 100e6
"""Bytes a second of a store that is slower than the target."""
MIB = 2**20


class SlowDisk(LocalDisk):
    """A local disk whose writes take as long as on a slow one."""

    def write(self, path: str, data: bytes | memoryview) -> None:
        began = time.monotonic()
        super().write(path, data)
        time.sleep(max(0.0, memoryview(data).nbytes / SLOW - (time.monotonic() - began)))


def answer(asked: Values) -> Values:
    """Twice: resident memory first, since tracemalloc takes memory of its own."""
    size = ShardSize(**asked["size"])
    identity = identity_of(size, asked["chunk_tokens"])
    side = _Writer(asked, identity, size) if asked["side"] == "writer" else _Reader(asked, identity)
    # What libraries load at their first use is not the buffers'.
    side.warm_up()
    before = resident()
    forget_peak()
    side.run()
    grown = peak() - before
    with _traced() as traced:
        side.run()
    return {
        "grown_mib": grown / MIB,
        "traced_mib": traced[0] / MIB,
        "bound_mib": side.bound / MIB,
        "moved_mib": side.moved / MIB,
    }


class _Writer:
    def __init__(self, asked: Values, identity: DumpIdentity, size: ShardSize) -> None:
        self._root = Path(asked["out"])
        self._identity = identity
        # Few samples, again and again: they are memory of the target, not of the writer.
        few = ShardSize(size.hidden, 4 * size.sample_tokens, size.sample_tokens)
        self._pairs: list[Pair] = list(pairs(identity, few, 0))
        self._repeats = max(1, asked["total_mib"] * MIB // state_bytes(self._pairs))
        self._buffer = asked["mib"] * MIB
        self.moved = self._repeats * state_bytes(self._pairs)
        self._tokens = self._repeats * sum(sample.num_tokens for sample, _ in self._pairs)
        self._rows = self._repeats * sum(sample.num_rows for sample, _ in self._pairs)
        chunks = planned_chunks(identity, self._tokens, self._rows)
        arrays = shard_arrays(identity, self._tokens, self._rows, chunks).values()
        self.bound = max(self._buffer, sum(array.payload_bytes for array in arrays))

    def warm_up(self) -> None:
        self._write(1)

    def run(self) -> None:
        self._write(self._repeats)

    def _write(self, repeats: int) -> None:
        root = str(self._root)
        writer = ShardWriter(
            ShardAttempt(Folder(root, SlowDisk(), root, DEFAULT_POLICY), 0),
            self._identity,
            self._tokens,
            self._rows,
            write_buffer_bytes=self._buffer,
        )
        for _ in range(repeats):
            for sample, states in self._pairs:
                writer.append(sample, states)
        writer.commit(VocabStatistics.zeros(VOCAB))
        shutil.rmtree(self._root)


class _Reader:
    def __init__(self, asked: Values, identity: DumpIdentity) -> None:
        folder = Folder.open(asked["root"])
        manifests = {
            shard_id: read_manifest(folder, manifest_key(shard_id), identity.fingerprint)
            for shard_id in range(asked["num_shards"])
        }
        self._reader = SampleReader(Dump(folder, header_of(identity), manifests, None), None)
        self._batch_tokens = min(4096, manifests[0].num_tokens // 4)
        self._batches = epoch_batches(self._reader.refs(), 0, 0, self._batch_tokens, None)
        self._prefetch = asked["mib"]
        self.moved = sum(map(self._reader.whole_bytes, manifests))
        largest = max(map(self._reader.whole_bytes, manifests))
        batch = max(map(self._reader.some_bytes, self._batches))
        self.bound = max(self._prefetch * MIB, largest) + 3 * batch

    def warm_up(self) -> None:
        first = self._reader.refs()[:1]
        self._reader.some(first[0].shard_id, first)

    def run(self) -> None:
        plan = [Read(self._reader, batch, False) for batch in self._batches]
        # Half as fast as the store that is slow for the writer, so that what is ahead piles up.
        pause = 2 * self.moved / len(plan) / SLOW
        with ReadAhead(plan, copies, self._prefetch) as ahead:
            for _ in ahead:
                time.sleep(pause)


@contextmanager
def _traced() -> Iterator[list[int]]:
    """The peak, in bytes, once it is left."""
    found = [0]
    tracemalloc.start()
    try:
        yield found
    finally:
        found[0] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


if __name__ == "__main__":
    serve_parent(answer)
