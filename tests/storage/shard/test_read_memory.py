"""What reading takes in memory beside what it returns.

tracemalloc counts Python's and numpy's memory; what Arrow and Blosc take inside, for one chunk in
each thread, is not in it.
"""

import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from specpipe.schemas.records.dump import DumpIdentity
from specpipe.stages.storage.chunks.arrays import planned_chunks, shard_arrays
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.reader import ShardReader
from specpipe.stages.upkeep.verify.findings import NUM_THREADS
from specpipe.stages.upkeep.verify.run import verify
from tests.storage.tiny import make_identity, make_pair, write_dump

FORMATS: dict[str, dict[str, Any]] = {
    "zarr": {},
    "zarr zstd": {"compression": "zstd"},
    "parquet": {"shard_format": "parquet"},
}
PARALLEL_READS = 4
BLOCK_BYTES = 2**18
"""What passes by of a raw chunk at a time."""
SLACK = 2**20
"""Records, tables, threads."""


@pytest.fixture(scope="module", params=FORMATS)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Dump]:
    """Two shards of about 12 MB, in chunks of 0.75 MB."""
    format = str(request.param)
    identity = make_identity(chunk_tokens=256, hidden=512, **FORMATS[format])
    pairs = [make_pair(identity, seed, 900, [(600, 900)]) for seed in range(4)]
    root = str(tmp_path_factory.mktemp("memory") / uuid.uuid4().hex)
    write_dump(root, identity, [pairs, pairs])
    return format, Dump.open(root)


def chunk_bytes(identity: DumpIdentity) -> int:
    """Of a chunk of `aux`, the largest."""
    arrays = shard_arrays(identity, 3600, 1200, planned_chunks(identity, 3600, 1200))
    return max(array.payload_bytes for array in arrays.values())


def passing(format: str, dump: Dump) -> int:
    """Bytes that are in memory while a chunk is read: of a packed one, it and its rows."""
    return BLOCK_BYTES if format == "zarr" else 2 * chunk_bytes(dump.identity)


def peak_of(action: Callable[[], Any]) -> tuple[int, Any]:
    tracemalloc.start()
    try:
        result = action()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def reader_of(dump: Dump) -> ShardReader:
    """One that has read the small things."""
    reader = dump.shard(0)
    reader.read_sample(reader.samples()[0])
    return reader


def test_read_all_takes_what_it_returns_and_chunks_on_their_way(written: tuple[str, Dump]) -> None:
    format, dump = written
    reader = reader_of(dump)
    peak, states = peak_of(reader.read_all)
    returned = sum(values.nbytes for values in states.columns().values())
    assert returned > 12e6
    assert returned < peak < returned + PARALLEL_READS * passing(format, dump) + SLACK


def test_read_sample_takes_the_sample_and_at_most_a_chunk(written: tuple[str, Dump]) -> None:
    format, dump = written
    reader = reader_of(dump)
    peak, states = peak_of(lambda: reader.read_sample(reader.samples()[2]))
    returned = sum(values.nbytes for values in states.columns().values())
    # Of a packed chunk, all rows are kept until the sample's have been taken out.
    rows = 0 if format == "zarr" else chunk_bytes(dump.identity)
    assert returned < peak < returned + passing(format, dump) + rows + SLACK


def test_verify_takes_chunks_for_each_thread(written: tuple[str, Dump]) -> None:
    format, dump = written
    peak, report = peak_of(lambda: verify(dump.folder.url))
    assert report.damages == ()
    # Two shards, so two threads at a time read chunks.
    num_threads = min(NUM_THREADS, len(dump.manifests))
    assert peak < num_threads * passing(format, dump) + 4 * SLACK
    assert report.num_bytes > 20e6
