"""Read one committed shard whole, and check it against its manifest, its plan and itself."""

from collections.abc import Sequence

import numpy as np

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import (
    AUX_SCALES_FILE,
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpIdentity,
    ObjectEntry,
    ShardManifest,
    manifest_key,
    plan_key,
)
from specpipe.stages.storage.chunks.arrays import ArrayLayout, array_names
from specpipe.stages.storage.chunks.codec import chunk_codec
from specpipe.stages.storage.chunks.read import read_chunk
from specpipe.stages.storage.chunks.row_scan import RowScan
from specpipe.stages.storage.chunks.zarr_format import describes_the_same
from specpipe.stages.storage.shard.array_check import ArrayCheck, sample_spans
from specpipe.stages.storage.shard.listing import listed_arrays, shard_entries
from specpipe.stages.storage.shard.samples import (
    StoredSample,
    check_plan,
    check_samples,
    plan_from_parquet,
    samples_from_parquet,
    supervised_counts,
)
from specpipe.stages.storage.shard.scales import read_scales
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.upkeep.verify.findings import Findings


def check_shard(
    findings: Findings, identity: DumpIdentity, manifest: ShardManifest
) -> VocabStatistics | None:
    """Note all that is wrong with a shard; returns its vocabulary statistics if they are sound."""
    folder, codec = findings.folder, chunk_codec(identity)
    try:
        arrays = listed_arrays(identity, codec, manifest, folder.where(manifest.folder))
    except IntegrityError as error:
        findings.note(manifest_key(manifest.shard_id), error)
        for entry in manifest.objects:
            findings.check_object(entry)
        return None
    entries = shard_entries(manifest)
    chunks = {
        name: [entries[codec.chunk_name(array, i)] for i in range(array.num_chunks)]
        for name, array in arrays.items()
    }
    in_arrays = {entry.key for listed in chunks.values() for entry in listed}
    for entry in manifest.objects:
        if entry.key not in in_arrays:
            findings.check_object(entry)
    _check_metadata(findings, codec.metadata(arrays), manifest)
    if manifest.aux_scales_crc32c is not None:
        _check_scales(findings, identity, manifest)
    samples = _check_samples(findings, identity, manifest)
    for name, array in arrays.items():
        spans = sample_spans(array, samples)
        check = ArrayCheck(array, chunks[name], spans)
        _check_array(findings, identity, array, chunks[name], check)
    return _check_vocab(findings, identity, manifest, samples)


def _check_array(
    findings: Findings,
    identity: DumpIdentity,
    array: ArrayLayout,
    chunks: Sequence[ObjectEntry],
    check: ArrayCheck,
) -> None:
    codec, vocab_size = chunk_codec(identity), identity.target.vocab_size
    for index, entry in enumerate(chunks):
        chunk = None
        if findings.check_size(entry):
            scan = RowScan(array, check.ends(index), vocab_size)
            try:
                chunk = read_chunk(findings.folder, codec, array, entry, scan)
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


def _check_scales(findings: Findings, identity: DumpIdentity, manifest: ShardManifest) -> None:
    try:
        scales = read_scales(findings.folder, identity)
    except IntegrityError as error:
        findings.note(AUX_SCALES_FILE, error)
        return
    if scales.crc32c != manifest.aux_scales_crc32c:
        findings.note(AUX_SCALES_FILE, f"is not the one that {manifest.folder} was written with")


def _check_samples(
    findings: Findings, identity: DumpIdentity, manifest: ShardManifest
) -> list[StoredSample]:
    """The shard's samples; none if they cannot be trusted."""
    folder, key = findings.folder, f"{manifest.folder}/{SAMPLES_FILE}"
    if not findings.is_sound(key):
        return []
    try:
        data, names = folder.read_small(key), array_names(identity)
        samples = samples_from_parquet(data, names, folder.where(key), manifest)
        check_samples(samples, identity, manifest, folder.where(key))
    except IntegrityError as error:
        findings.note(key, error)
        return []
    plan = plan_key(manifest.shard_id)
    if plan not in findings.sizes:
        findings.note(plan, "is missing")
    elif findings.is_sound(plan):
        try:
            planned = plan_from_parquet(folder.read_small(plan), folder.where(plan))
        except IntegrityError as error:
            findings.note(plan, error)
            return samples
        try:
            check_plan(samples, planned, folder.where(key))
        except IntegrityError as error:
            findings.note(key, error)
    return samples


def _check_vocab(
    findings: Findings,
    identity: DumpIdentity,
    manifest: ShardManifest,
    samples: Sequence[StoredSample],
) -> VocabStatistics | None:
    folder, key = findings.folder, f"{manifest.folder}/{VOCAB_FILE}"
    if not findings.is_sound(key):
        return None
    try:
        vocab = VocabStatistics.from_parquet(
            folder.read_small(key), identity.target.vocab_size, folder.where(key)
        )
    except IntegrityError as error:
        findings.note(key, error)
        return None
    # Of text that the target wrote, no hash is known: a token or a mask that changed shows here.
    if samples and findings.is_sound(f"{manifest.folder}/{SAMPLES_FILE}"):
        count_V = supervised_counts(samples, identity.target.vocab_size)
        if not np.array_equal(vocab.count_V, count_V):
            findings.note(key, f"does not count the supervised tokens of {SAMPLES_FILE}")
    return vocab
