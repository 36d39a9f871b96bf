"""What can befall an object, on any store, and what has to follow from it.

Everything goes through a Folder, so that one matrix serves local disks and object stores.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from specpipe.schemas.errors import ConfigError, IntegrityError, UnfinishedError
from specpipe.schemas.records.dump import (
    DUMP_FILE,
    INDEX_FILE,
    DumpIdentity,
    ObjectEntry,
    ShardManifest,
    manifest_key,
)
from specpipe.stages.storage.chunks.arrays import ArrayLayout
from specpipe.stages.storage.chunks.codec import buffer_bytes, chunk_codec
from specpipe.stages.storage.chunks.read import read_chunk
from specpipe.stages.storage.chunks.row_scan import RowScan
from specpipe.stages.storage.records import read_manifest
from specpipe.stages.storage.shard.listing import listed_arrays, shard_entries
from specpipe.stages.storage.store.crc import crc32c
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.upkeep.verify.run import verify
from tests.storage.tiny import replace_object, use_everything

Damage = Callable[[Folder, str], None]

SHARD = "shards/000000-0000000000000001"
AUX = f"{SHARD}/states.zarr/aux_1/c/0/0"
"""Of the dumps that write_dump writes: the folder of shard 0, and its first chunk of `aux_1`."""

FORMATS: dict[str, dict[str, Any]] = {
    "zarr": {},
    "parquet": {"shard_format": "parquet"},
    "zarr zstd int8 topk": {"compression": "zstd", "states_dtype": "int8", "logits": "topk:5"},
    "parquet zstd int8 full": {
        "shard_format": "parquet",
        "compression": "zstd",
        "states_dtype": "int8",
        "logits": "full",
    },
}
"""What a dump's identity says of the format, by name."""


def copy_objects(source: Folder, target: Folder) -> None:
    """Every object of one folder, as it is, to another."""
    for key in source.list():
        target.write(key, source.read(key))


def flip(at: Callable[[int], int]) -> Damage:
    """Flip a bit of the byte `at(size)`."""

    def damage(folder: Folder, key: str) -> None:
        data = bytearray(folder.read(key))
        data[at(len(data))] ^= 0x10
        folder.write(key, bytes(data))

    return damage


def truncate(to: Callable[[int], int]) -> Damage:
    """Cut to `to(size)` bytes."""

    def damage(folder: Folder, key: str) -> None:
        data = folder.read(key)
        folder.write(key, data[: to(len(data))])

    return damage


def lengthen(folder: Folder, key: str) -> None:
    folder.write(key, folder.read(key) + b"\0")


DAMAGES: dict[str, Damage] = {
    "first byte flipped": flip(lambda size: 0),
    "middle byte flipped": flip(lambda size: size // 2),
    "last byte flipped": flip(lambda size: size - 1),
    "removed": lambda folder, key: folder.remove(key),
    "short by a byte": truncate(lambda size: size - 1),
    "half": truncate(lambda size: size // 2),
    "emptied": truncate(lambda size: 0),
    "longer by a byte": lengthen,
}


def assert_every_damage_shows(root: str, kind: str, keys: Iterable[str]) -> None:
    """Damage each of the objects in turn: verify names it and no other, and no reader uses it.

    `root` is that of a sound dump, and is left sound.
    """
    folder = Folder.open(root)
    for key in keys:
        written = folder.read(key)
        DAMAGES[kind](folder, key)
        assert_damage_shows(root, kind, key)
        folder.write(key, written)
    assert verify(root).damages == ()
    use_everything(root)


def assert_damage_shows(root: str, kind: str, key: str) -> None:
    report = verify(root)
    if (kind, key) == ("removed", INDEX_FILE):
        assert report.damages == ()
        assert not report.complete
        with pytest.raises(UnfinishedError, match="unfinished"):
            use_everything(root)
        return
    assert [damage.key for damage in report.damages] == [key], report
    expected = ConfigError if (kind, key) == ("removed", DUMP_FILE) else IntegrityError
    with pytest.raises(expected, match=key.rpartition("/")[2]):
        use_everything(root)


def chunk_key(folder: Folder, identity: DumpIdentity, name: str, index: int) -> str:
    """Key of a chunk of shard 0."""
    _, entry = _chunk(folder, identity, name, index)
    return entry.key


def stored_rows(folder: Folder, identity: DumpIdentity, name: str, index: int) -> npt.NDArray[Any]:
    """The rows of a chunk of shard 0, as they are stored but for compression."""
    array, entry = _chunk(folder, identity, name, index)
    rows = np.empty((array.bytes_in(index) // array.row_bytes, *array.row_shape), array.dtype)
    scan = RowScan(array, [rows.nbytes], identity.target.vocab_size, rows)
    read_chunk(folder, chunk_codec(identity), array, entry, scan)
    return rows


def replace_rows(
    folder: Folder, identity: DumpIdentity, name: str, index: int, values: npt.NDArray[Any]
) -> None:
    """Write other rows as a chunk of shard 0, with every crc to match but the samples' own."""
    array, entry = _chunk(folder, identity, name, index)
    buffer = np.zeros(buffer_bytes(array), np.uint8)
    rows = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    buffer[: len(rows)] = rows
    encoded = chunk_codec(identity).encode(array, buffer, len(rows), crc32c(rows))
    payload = bytes(encoded.data)[: len(encoded.data) - encoded.trailer_bytes]
    replace_object(folder, identity, entry.key, payload)


def manifest_of(folder: Folder, identity: DumpIdentity) -> ShardManifest:
    """That of shard 0."""
    return read_manifest(folder, manifest_key(0), identity.fingerprint)


def _chunk(
    folder: Folder, identity: DumpIdentity, name: str, index: int
) -> tuple[ArrayLayout, ObjectEntry]:
    manifest, codec = manifest_of(folder, identity), chunk_codec(identity)
    array = listed_arrays(identity, codec, manifest, manifest.folder)[name]
    return array, shard_entries(manifest)[codec.chunk_name(array, index)]


def named(dump: Path) -> dict[str, str]:
    """The damages that verify finds, by key."""
    return {damage.key: damage.problem for damage in verify(str(dump)).damages}
