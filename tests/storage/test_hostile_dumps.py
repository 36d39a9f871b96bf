"""Dumps whose every hash is right, by somebody who means harm: bombs, links, pipes, claims.

What is refused names the object; nothing outside of the dump is touched.
"""

import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import DumpHeader, DumpIdentity, ShardManifest, manifest_key
from specpipe.stages.storage.chunks.arrays import ArrayLayout, array_names
from specpipe.stages.storage.chunks.parquet_format import ParquetChunks, array_schema
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.records import read_manifest
from specpipe.stages.storage.shard.samples import (
    samples_from_parquet,
    samples_to_parquet,
    stored_schema,
)
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.untrusted.memory import bounded_memory
from specpipe.stages.upkeep.gc import gc
from specpipe.stages.upkeep.verify.run import verify
from tests.storage.tiny import (
    make_identity,
    make_shards,
    replace_manifest,
    replace_object,
    use_everything,
    write_dump,
    write_index,
)
from tests.untrusted.test_parquet import varint

SHARD = "shards/000000-0000000000000001"
SAMPLES = f"{SHARD}/samples.parquet"
VOCAB = f"{SHARD}/vocab.parquet"
FEW_BYTES = 2**29
"""What refusing may map; each bomb takes gigabytes."""


@pytest.fixture
def identity() -> DumpIdentity:
    return make_identity()


@pytest.fixture
def dump(tmp_path: Path, identity: DumpIdentity) -> Path:
    write_dump(str(tmp_path / "dump"), identity, make_shards(identity))
    return tmp_path / "dump"


def problems(dump: Path) -> dict[str, str]:
    return {damage.key: damage.problem for damage in verify(str(dump)).damages}


def table(columns: dict[str, Any], schema: Any) -> bytes:
    buffer = io.BytesIO()
    options = {"write_statistics": False, "dictionary_pagesize_limit": 2**30}
    pq.write_table(
        pa.table(columns).select(schema.names).cast(schema), buffer, compression="zstd", **options
    )
    return buffer.getvalue()


def many_samples(identity: DumpIdentity, count: int) -> bytes:
    schema = stored_schema(array_names(identity))
    empty = {
        pa.string(): pa.array([""] * count),
        pa.list_(pa.int32()): pa.array([[]] * count, pa.list_(pa.int32())),
        pa.list_(pa.uint8()): pa.array([[]] * count, pa.list_(pa.uint8())),
    }
    zeros = pa.array(np.zeros(count, np.int64))
    return table({field.name: empty.get(field.type, zeros) for field in schema}, schema)


def long_texts(folder: Folder, identity: DumpIdentity) -> bytes:
    names = array_names(identity)
    first, *rest = samples_from_parquet(folder.read(SAMPLES), names, SAMPLES)
    long = replace(first, metadata={"a": "x" * (2**26 + 2**22)})
    return samples_to_parquet([long, *rest], names)


def many_tokens(folder: Folder, identity: DumpIdentity) -> bytes:
    count = 10_000_000
    columns = {"token_id": np.arange(count, dtype=np.int32), "count": np.zeros(count, np.int64)}
    schema = pa.schema([("token_id", pa.int32()), ("count", pa.int64()), ("mass", pa.float64())])
    return table(columns | {"mass": np.zeros(count)}, schema)


@pytest.mark.parametrize(
    ("key", "make", "problem"),
    [
        (SAMPLES, lambda _, identity: many_samples(identity, 300_000), "300000 rows, more than 3"),
        (SAMPLES, long_texts, "bytes of metadata, more than"),
        (VOCAB, many_tokens, "10000000 rows, more than 23"),
    ],
)
def test_tables_that_expand(
    dump: Path, identity: DumpIdentity, key: str, make: Callable[..., bytes], problem: str
) -> None:
    folder = Folder.open(str(dump))
    replace_object(folder, identity, key, make(folder, identity))
    with bounded_memory(2 * FEW_BYTES):
        assert problem in problems(dump)[key]
        with pytest.raises(IntegrityError, match=f"{re.escape(key)}.*{problem}"):
            use_everything(str(dump))


@pytest.mark.parametrize("samples", [3, 10**8, 2**62])
def test_a_manifest_that_counts_as_many_samples(
    dump: Path, identity: DumpIdentity, samples: int
) -> None:
    """What a shard can have bounds what its manifest claims."""
    folder = Folder.open(str(dump))
    replace_object(folder, identity, SAMPLES, many_samples(identity, 300_000))
    manifest = read_manifest(folder, manifest_key(0), identity.fingerprint)
    replace_manifest(folder, identity, manifest, num_samples=samples)
    expected = "more than 3" if samples == 3 else "more than 262144"
    with bounded_memory(FEW_BYTES):
        assert expected in problems(dump)[SAMPLES]


@pytest.mark.parametrize(
    "metadata", ['{"a": ' + "[" * 5000 + "]" * 5000 + "}", '{"a": ' + "9" * 6000 + "}", "[]", "{"]
)
def test_metadata_that_no_json_reader_takes(
    dump: Path, identity: DumpIdentity, metadata: str
) -> None:
    folder = Folder.open(str(dump))
    stored = pq.read_table(pa.BufferReader(folder.read(SAMPLES)))
    at = stored.schema.names.index("metadata")
    altered = stored.set_column(at, stored.schema.field(at), [[metadata] * stored.num_rows])
    replace_object(folder, identity, SAMPLES, table(altered, altered.schema))
    assert "its metadata: " in problems(dump)[SAMPLES]
    with pytest.raises(IntegrityError, match="its metadata: "):
        use_everything(str(dump))


def claim(dump: Path, identity: DumpIdentity, **claims: int) -> None:
    """Write the records of a dump whose target has other sizes."""
    other = identity.model_copy(update={"target": identity.target.model_copy(update=claims)})
    folder = Folder.open(str(dump))
    for shard_id in (0, 1):
        manifest = read_manifest(folder, manifest_key(shard_id), identity.fingerprint)
        fields = {name: getattr(manifest, name) for name in ShardManifest.model_fields}
        fields |= {"fingerprint": other.fingerprint, "content_sha256": ""}
        folder.write(manifest_key(shard_id), ShardManifest(**fields).to_json())
    header = DumpHeader(identity=other, fingerprint=other.fingerprint, specpipe_version="0")
    folder.write("dump.json", header.to_json())
    write_index(folder, other)


@pytest.mark.parametrize("vocab_size", [2**20 + 1, 10**7, 10**9, 10**12, 2**70])
def test_a_vocabulary_that_no_head_has(dump: Path, identity: DumpIdentity, vocab_size: int) -> None:
    claim(dump, identity, vocab_size=vocab_size)
    with bounded_memory(FEW_BYTES):
        assert "vocab" in problems(dump)["dump.json"]
        with pytest.raises(IntegrityError, match="vocab"):
            Dump.open(str(dump))


@pytest.mark.parametrize("name", ["dump.json", "index.json", SAMPLES, manifest_key(0), "/dev/zero"])
def test_a_pipe_or_a_device_in_the_place_of_an_object(dump: Path, name: str) -> None:
    if name == "/dev/zero":
        name = "dump.json"
        (dump / name).unlink()
        (dump / name).symlink_to("/dev/zero")
    else:
        (dump / name).unlink()
        os.mkfifo(dump / name)
    assert name in problems(dump)
    with pytest.raises(IntegrityError, match=re.escape(name)):
        use_everything(str(dump))


@pytest.mark.parametrize("link", ["shards", "link", "shards/link", "shards/000007-00000000"])
def test_gc_removes_nothing_behind_a_symbolic_link(dump: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    (dump / "shards").rename(outside)
    (outside / "000009-00000000").mkdir()
    precious = [outside / ".tmp-precious", outside / "000009-00000000" / "aux"]
    if link != "shards":
        (dump / "shards").mkdir()
        for path in outside.iterdir():
            path.rename(dump / "shards" / path.name)
        precious = [outside / ".tmp-precious", outside / "deep" / ".tmp-two"]
        (outside / "deep").mkdir()
    (dump / link).symlink_to(outside, target_is_directory=True)
    for path in precious:
        path.write_bytes(b"mine")
    (dump / ".tmp-ours").write_bytes(b"1")
    result = gc(str(dump))
    assert ".tmp-ours" in [piece.key for piece in result.garbage]
    assert all(path.read_bytes() == b"mine" for path in precious)
    assert not (dump / ".tmp-ours").exists()


def test_links_that_lead_to_themselves_are_passed_over(dump: Path) -> None:
    (dump / "itself").symlink_to("itself")
    (dump / "shards" / "up").symlink_to("..", target_is_directory=True)
    assert gc(str(dump)).num_objects == 0
    assert not verify(str(dump)).damages


def test_folders_that_are_nested_deeper_than_calls(
    dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dump)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    result, damages = gc(str(dump)), verify(str(dump)).damages
    for _ in range(1200):  # pytest's own cleaning goes by recursion
        os.chdir("..")
        os.rmdir("d")
    assert result.num_objects == 0
    assert not damages


def test_sizes_that_add_up_to_more_than_a_clock_holds(dump: Path, identity: DumpIdentity) -> None:
    """The progress is told of what is there."""
    folder = Folder.open(str(dump))
    manifest = read_manifest(folder, manifest_key(0), identity.fingerprint)
    objects = tuple(e.model_copy(update={"size": 2**52}) for e in manifest.objects)
    replace_manifest(folder, identity, manifest, objects=objects)
    told: list[int] = []
    verify(str(dump), progress=lambda done, total: told.append(total))
    assert max(told) < 2**20


def test_a_chunk_whose_page_is_larger_than_its_footer_says() -> None:
    """Arrow allocates what the page itself states."""
    few, many = 2_100_000, 30_000_000
    layout = ArrayLayout("logz", few, few, (), np.dtype(np.float32), ("row",))
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays([np.zeros(many, np.float32)], schema=array_schema(layout)),
        sink,
        use_dictionary=False,
        write_statistics=False,
        compression="zstd",
        row_group_size=many,
        data_page_size=2**30,
        max_rows_per_page=many,
    )
    data = sink.getvalue()
    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0)
    for said, meant in ((many, few), (column.total_uncompressed_size, 4 * few)):
        at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        data = data[:at] + data[at:].replace(varint(said), varint(meant))
    codec, rows = ParquetChunks("zstd"), np.zeros(4 * few, np.uint8)
    before, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(IntegrityError, match="no Parquet file of 2100000 rows"):
            codec.decode(layout, memoryview(data), rows, "chunk")
    finally:
        pa.set_memory_pool(before)
    assert counted.max_memory() < 2**24
