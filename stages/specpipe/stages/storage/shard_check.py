"""Read one committed shard whole, and check it against its manifest, its plan and itself.

Legend: S verifier rows.
"""

import json
from typing import Any

import numpy as np

from specpipe.schemas.dump import (
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpIdentity,
    ShardManifest,
    manifest_key,
    plan_key,
)
from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.array_check import ArrayCheck, aux_span, final_span
from specpipe.stages.storage.arrays import (
    ArrayLayout,
    listed_arrays,
    shard_entries,
    zarr_metadata,
)
from specpipe.stages.storage.findings import Findings
from specpipe.stages.storage.samples import (
    StoredSample,
    check_plan,
    check_samples,
    plan_from_parquet,
    samples_from_parquet,
)
from specpipe.stages.storage.vocab import VocabStatistics

# What a reader of another library goes by; other fields may differ between zarr versions.
_ZARR_FIELDS = ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "attributes")


def check_shard(
    findings: Findings, identity: DumpIdentity, manifest: ShardManifest
) -> VocabStatistics | None:
    """Note all that is wrong with a shard; returns its vocabulary statistics if they are sound."""
    folder = findings.folder
    entries = shard_entries(manifest)
    try:
        arrays = listed_arrays(identity, manifest, folder.where(manifest.folder))
    except IntegrityError as error:
        findings.note(manifest_key(manifest.shard_id), error)
        for entry in manifest.objects:
            findings.check_object(entry)
        return None
    for entry in manifest.objects:
        if not entry.trailer_bytes:
            findings.check_object(entry)
    _check_metadata(findings, arrays, manifest)
    samples = _check_samples(findings, identity, manifest)
    spans = {
        "aux": [aux_span(sample) for sample in samples],
        "final": [final_span(sample) for sample in samples],
    }
    for name, array in arrays.items():
        check = ArrayCheck(
            array,
            [entries[array.chunk_name(i)] for i in range(array.num_chunks)],
            spans.get(name, []),
            identity.target.vocab_size,
        )
        _check_array(findings, array, check, manifest)
    return _check_vocab(findings, identity, manifest)


def _check_array(
    findings: Findings, array: ArrayLayout, check: ArrayCheck, manifest: ShardManifest
) -> None:
    entries = shard_entries(manifest)
    chunk = np.empty(0, np.uint8)
    for index in range(array.num_chunks):
        entry = entries[array.chunk_name(index)]
        num_rows = min(array.chunk_rows, array.num_rows - index * array.chunk_rows)
        end = num_rows * array.row_bytes
        is_read = findings.check_size(entry)
        if is_read:
            if not len(chunk):
                # Not sooner: the size in the manifest may be anything.
                chunk = np.empty(array.chunk_bytes, np.uint8)
            try:
                findings.folder.read_into(entry.key, 0, [chunk.data])
            except IntegrityError as error:
                # It was there when the store was listed.
                findings.note(entry.key, error)
                is_read = False
            findings.advance(entry.size)
        for key, problem in check.chunk(index, chunk[:end] if is_read else None, chunk[end:]):
            findings.note(key, problem)


def _check_metadata(
    findings: Findings, arrays: dict[str, ArrayLayout], manifest: ShardManifest
) -> None:
    """The zarr.json objects, which specpipe itself does not go by."""
    for name, data in zarr_metadata(arrays).items():
        key = f"{manifest.folder}/{name}"
        if not findings.is_sound(key):
            continue
        try:
            stored = json.loads(findings.folder.read(key))
        except ValueError:
            stored = {}
        if _essence(stored) != _essence(json.loads(data)):
            findings.note(key, "does not describe the array that the manifest lists")


def _essence(metadata: Any) -> list[Any]:
    codecs = [codec.get("name") for codec in metadata.get("codecs", [])]
    return [codecs, *(metadata.get(field) for field in _ZARR_FIELDS)]


def _check_samples(
    findings: Findings, identity: DumpIdentity, manifest: ShardManifest
) -> list[StoredSample]:
    """The shard's samples; none if they cannot be trusted."""
    folder, key = findings.folder, f"{manifest.folder}/{SAMPLES_FILE}"
    if not findings.is_sound(key):
        return []
    try:
        samples = samples_from_parquet(folder.read(key), folder.where(key))
        check_samples(samples, identity, manifest, folder.where(key))
    except IntegrityError as error:
        findings.note(key, error)
        return []
    plan = plan_key(manifest.shard_id)
    if plan not in findings.sizes:
        findings.note(plan, "is missing")
    elif findings.is_sound(plan):
        try:
            planned = plan_from_parquet(folder.read(plan), folder.where(plan))
        except IntegrityError as error:
            findings.note(plan, error)
            return samples
        try:
            check_plan(samples, planned, folder.where(key))
        except IntegrityError as error:
            findings.note(key, error)
    return samples


def _check_vocab(
    findings: Findings, identity: DumpIdentity, manifest: ShardManifest
) -> VocabStatistics | None:
    folder, key = findings.folder, f"{manifest.folder}/{VOCAB_FILE}"
    if not findings.is_sound(key):
        return None
    try:
        return VocabStatistics.from_parquet(
            folder.read(key), identity.target.vocab_size, folder.where(key)
        )
    except IntegrityError as error:
        findings.note(key, error)
        return None
