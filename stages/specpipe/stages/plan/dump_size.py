"""Size of a planned dump in the store: objects and bytes, before anything is written.

The chunks are counted by the layout and the codec that write them. What is small and depends on its
contents (the tables beside the states, the manifests) is made for a few shards with made-up
figures, and taken for alike in the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from specpipe.schemas.records.dump import (
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpHeader,
    DumpIdentity,
    GenerationCounts,
    ObjectEntry,
    ShardManifest,
    shard_folder,
)
from specpipe.stages.dump_plan.shards import Plan
from specpipe.stages.storage.chunks.arrays import ArrayLayout, planned_chunks, shard_arrays
from specpipe.stages.storage.chunks.codec import ChunkCodec, buffer_bytes, chunk_codec
from specpipe.stages.storage.shard.samples import (
    PlannedSample,
    StoredSample,
    plan_to_parquet,
    samples_to_parquet,
)
from specpipe.stages.storage.vocab import VocabStatistics

_MEASURED_SHARDS = 8
_PER_SHARD = 2
"""Its manifest and its plan."""
_OTHER_FILES = 3
"""dump.json, vocab.parquet and rejected.jsonl."""


@dataclass(frozen=True, slots=True)
class TargetFiles:
    """What `target/` of a dump holds."""

    num_objects: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class DumpSize:
    """The objects that the index and the manifests of a dump list.

    Of generated text, and of compressed states, the most that it may be.
    """

    logits: str
    shard_format: Literal["zarr", "parquet"]
    num_objects: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Shard:
    """A planned shard, with its tokens and verifier rows counted for every storage format."""

    samples: Sequence[PlannedSample]
    num_tokens: int
    num_rows: int

    @classmethod
    def of(cls, samples: Sequence[PlannedSample]) -> "_Shard":
        num_tokens = sum(sample.size for sample in samples)
        return cls(samples, num_tokens, sum(sample.most_rows for sample in samples))


def dump_sizes(
    identities: Sequence[DumpIdentity], plan: Plan, target: TargetFiles, num_rejected_bytes: int
) -> tuple[DumpSize, ...]:
    """Objects and bytes of a dump of each identity, whose states are not compressed."""
    shards = [_Shard.of(samples) for samples in plan]
    some = np.linspace(0, len(shards) - 1, min(len(shards), _MEASURED_SHARDS)).round().astype(int)
    vocab_size = identities[0].target.vocab_size
    measured = [_Measured.of(int(at), shards[at], vocab_size) for at in some]
    around = target.num_bytes + num_rejected_bytes + len(_vocab(vocab_size).to_parquet())
    return tuple(
        _dump_size(identity, shards, measured, target.num_objects, around)
        for identity in identities
    )


def _dump_size(
    identity: DumpIdentity,
    shards: Sequence[_Shard],
    measured: Sequence["_Measured"],
    num_target_objects: int,
    num_bytes_around: int,
) -> DumpSize:
    identity = identity.model_copy(update={"compression": "none"})
    layout = _Layout(identity)
    num_chunks = num_chunk_bytes = 0
    for shard in shards:
        for array in layout.arrays(shard).values():
            num_chunks += array.num_chunks
            num_chunk_bytes += layout.chunk_bytes(array)
    small = [_small_files(identity, layout, each) for each in measured]
    scales = int(identity.states_dtype == "int8")
    return DumpSize(
        logits=identity.logits,
        shard_format=identity.shard_format,
        num_objects=num_chunks
        + (small[0].num_listed + _PER_SHARD) * len(shards)
        + num_target_objects
        + _OTHER_FILES
        + scales,
        num_bytes=num_chunk_bytes
        + round(sum(files.num_bytes for files in small) * len(shards) / len(small))
        + len(_header(identity).to_json())
        + num_bytes_around
        + scales * 4 * len(identity.layers) * identity.target.hidden_size,
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """A shard whose small files are made; those that are the same however it is stored are here."""

    shard_id: int
    shard: _Shard
    num_bytes: int
    """Of its plan and its vocab.parquet."""

    @classmethod
    def of(cls, shard_id: int, shard: _Shard, vocab_size: int) -> "_Measured":
        vocab = _vocab(vocab_size)
        for sample in shard.samples:
            next_ids = sample.input_ids[1:][sample.loss_mask[1:] == 1]
            vocab.count_V[:] += np.bincount(next_ids, minlength=vocab_size)
        plan = plan_to_parquet(shard.samples)
        return cls(shard_id, shard, len(plan) + len(vocab.to_parquet()))


class _Layout:
    """How the shards of a dump are cut into chunks, and the size of a chunk."""

    def __init__(self, identity: DumpIdentity) -> None:
        self._identity = identity
        self.codec: ChunkCodec = chunk_codec(identity)
        self._overheads: dict[str, int] = {}

    def arrays(self, shard: _Shard) -> dict[str, ArrayLayout]:
        chunks = planned_chunks(self._identity, shard.num_tokens, shard.num_rows)
        return shard_arrays(self._identity, shard.num_tokens, shard.num_rows, chunks)

    def chunk_bytes(self, array: ArrayLayout) -> int:
        """Bytes of all chunks of an array."""
        if self.codec.is_raw:
            return array.num_chunks * buffer_bytes(array)
        return array.num_rows * array.row_bytes + array.num_chunks * self._overhead(array)

    def _overhead(self, array: ArrayLayout) -> int:
        """What a chunk has beside its rows: hardly more with many of them than with one."""
        if array.name not in self._overheads:
            one = ArrayLayout(array.name, 1, 1, array.row_shape, array.dtype, array.dimensions)
            row = np.zeros(buffer_bytes(one), np.uint8)
            encoded = self.codec.encode(one, row, one.row_bytes, 0)
            self._overheads[array.name] = len(encoded.data) - one.row_bytes
        return self._overheads[array.name]


@dataclass(frozen=True, slots=True)
class _SmallFiles:
    """Files of a shard other than chunks."""

    num_listed: int
    """Objects beside the chunks that its manifest lists."""
    num_bytes: int
    """Their bytes, with those of manifest and plan."""


def _small_files(identity: DumpIdentity, layout: _Layout, measured: _Measured) -> _SmallFiles:
    shard_id, shard = measured.shard_id, measured.shard
    samples, arrays = shard.samples, layout.arrays(shard)
    random = np.random.default_rng(shard_id)
    files = {
        **layout.codec.metadata(arrays),
        SAMPLES_FILE: samples_to_parquet(_stored(samples, [*arrays], random), [*arrays]),
    }
    prefix = shard_folder(shard_id, "0" * 16)
    chunks = [
        layout.codec.chunk_name(array, index)
        for array in arrays.values()
        for index in range(array.num_chunks)
    ]
    sizes = {name: len(data) for name, data in files.items()}
    sizes |= dict.fromkeys([*chunks, VOCAB_FILE], 2**26)
    manifest = ShardManifest(
        shard_id=shard_id,
        attempt="0" * 16,
        fingerprint=identity.fingerprint,
        num_samples=len(samples),
        num_tokens=shard.num_tokens,
        num_rows=shard.num_rows,
        chunk_rows={name: array.chunk_rows for name, array in arrays.items()},
        aux_scales_crc32c=2**31 if identity.states_dtype == "int8" else None,
        aux_error=(0.00512345,) * len(identity.layers) if identity.states_dtype == "int8" else None,
        generation=GenerationCounts() if identity.text.is_planned else None,
        objects=tuple(
            ObjectEntry(key=f"{prefix}/{name}", size=size, crc32c=int(random.integers(2**32)))
            for name, size in sorted(sizes.items())
        ),
    )
    num_bytes = sum(map(len, files.values())) + len(manifest.to_json()) + measured.num_bytes
    return _SmallFiles(len(files) + 1, num_bytes)


def _stored(
    samples: Sequence[PlannedSample], arrays: Sequence[str], random: np.random.Generator
) -> list[StoredSample]:
    """The samples as they are stored, with made-up crcs: they take what true ones do."""
    stored, offset, row_offset = [], 0, 0
    for sample in samples:
        crcs = random.integers(2**32, size=len(arrays)).tolist()
        crc32c = dict(zip(arrays, crcs, strict=True))
        stored.append(StoredSample.at(sample, offset, row_offset, crc32c))
        offset += sample.size
        row_offset += sample.most_rows
    return stored


def _vocab(vocab_size: int) -> VocabStatistics:
    """A probability for each token: no two alike, as the target's."""
    vocab = VocabStatistics.zeros(vocab_size)
    vocab.mass_V[:] = np.random.default_rng(0).random(vocab_size)
    return vocab


def _header(identity: DumpIdentity) -> DumpHeader:
    full = identity.model_copy(
        update={"target": identity.target.model_copy(update={"weights_sha256": "0" * 64})}
    )
    return DumpHeader(identity=full, fingerprint=full.fingerprint, specpipe_version="0.0.0")
