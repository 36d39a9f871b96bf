"""Read one committed shard whole, and check it against its manifest, its plan and itself."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import (
    AUX_SCALES_FILE,
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpIdentity,
    ShardManifest,
    manifest_key,
    plan_key,
)
from specpipe.stages.storage.chunks.arrays import ArrayLayout
from specpipe.stages.storage.chunks.zarr_format import describes_the_same
from specpipe.stages.storage.shard.reader import ShardReader
from specpipe.stages.storage.shard.samples import (
    StoredSample,
    check_plan,
    plan_from_parquet,
    supervised_counts,
)
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.upkeep.verify.findings import Findings

Read = TypeVar("Read")


def check_shard(
    findings: Findings, identity: DumpIdentity, manifest: ShardManifest
) -> VocabStatistics | None:
    """Note all that is wrong with a shard; returns its vocabulary statistics if they are sound."""
    try:
        reader = ShardReader(findings.folder, identity, manifest)
    except IntegrityError as error:
        findings.note(manifest_key(manifest.shard_id), error)
        for entry in manifest.objects:
            findings.check_object(entry)
        return None
    in_arrays = {entry.key for array in reader.arrays for entry in reader.chunks(array)}
    for entry in manifest.objects:
        if entry.key not in in_arrays:
            findings.check_object(entry)
    _check_metadata(findings, reader.metadata, manifest)
    if manifest.aux_scales_crc32c is not None:
        _sound(findings, AUX_SCALES_FILE, reader.scales)
    samples = _check_samples(findings, reader, manifest)
    for array in reader.arrays:
        _check_array(findings, reader, array, samples)
    return _check_vocab(findings, reader, manifest, samples)


def _sound(findings: Findings, key: str, read: Callable[[], Read]) -> Read | None:
    """What is read; None where the object is damaged, which is noted."""
    try:
        return read() if findings.is_sound(key) else None
    except IntegrityError as error:
        findings.note(key, error)
        return None


def _check_array(
    findings: Findings, reader: ShardReader, array: ArrayLayout, samples: Sequence[StoredSample]
) -> None:
    check = reader.check(array, samples)
    for index, entry in enumerate(reader.chunks(array)):
        chunk = None
        if findings.check_size(entry):
            try:
                chunk = reader.read_chunk(array, index, check.ends(index))
            except IntegrityError as error:
                findings.note(entry.key, error)
            findings.advance(entry.size)
        for key, problem in check.chunk(index, chunk):
            findings.note(key, problem)


def _check_metadata(
    findings: Findings, metadata: dict[str, bytes], manifest: ShardManifest
) -> None:
    """The zarr.json objects, which specpipe itself does not go by."""
    for name, data in metadata.items():
        key = f"{manifest.folder}/{name}"
        if findings.is_sound(key) and not describes_the_same(findings.folder.read_small(key), data):
            findings.note(key, "does not describe the array that the manifest lists")


def _check_samples(
    findings: Findings, reader: ShardReader, manifest: ShardManifest
) -> list[StoredSample]:
    """The shard's samples; none if they cannot be trusted."""
    key = f"{manifest.folder}/{SAMPLES_FILE}"
    samples = _sound(findings, key, reader.samples)
    if samples is None:
        return []
    plan, folder = plan_key(manifest.shard_id), findings.folder
    if plan not in findings.sizes:
        findings.note(plan, "is missing")
    planned = _sound(
        findings, plan, lambda: plan_from_parquet(folder.read_small(plan), folder.where(plan))
    )
    if planned is not None:
        _sound(findings, key, lambda: check_plan(samples, planned, folder.where(key)))
    return samples


def _check_vocab(
    findings: Findings,
    reader: ShardReader,
    manifest: ShardManifest,
    samples: Sequence[StoredSample],
) -> VocabStatistics | None:
    key = f"{manifest.folder}/{VOCAB_FILE}"
    vocab = _sound(findings, key, reader.vocab)
    if vocab is None:
        return None
    # Of text that the target wrote, no hash is known: a token or a mask that changed shows here.
    if samples and findings.is_sound(f"{manifest.folder}/{SAMPLES_FILE}"):
        count_V = supervised_counts(samples, len(vocab.count_V))
        if not np.array_equal(vocab.count_V, count_V):
            findings.note(key, f"does not count the supervised tokens of {SAMPLES_FILE}")
    return vocab
