"""The last step, when every shard has its manifest: vocab.parquet, rejected.jsonl, index.json."""

from collections.abc import Iterable, Sequence
from functools import reduce

from specpipe.schemas.records.dump import (
    AUX_SCALES_FILE,
    DUMP_FILE,
    INDEX_FILE,
    REJECTED_FILE,
    TARGET_FOLDER,
    VOCAB_FILE,
    DumpIdentity,
    DumpIndex,
    DumpTotals,
    GenerationCounts,
    ShardManifest,
    manifest_key,
    plan_key,
)
from specpipe.stages.dump.shard import NON_FINITE, NOT_WRITTEN
from specpipe.stages.dump_plan.shards import Plan
from specpipe.stages.storage.records import parse_index
from specpipe.stages.storage.shard.reader import ShardReader
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.objects import measure_object, put_object
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.text.rejected import Rejection, to_jsonl


def finalise(
    folder: Folder,
    identity: DumpIdentity,
    plan: Plan,
    manifests: Sequence[ShardManifest],
    rejections: Sequence[Rejection],
) -> DumpIndex:
    """Complete the dump; any worker may, and twice. Returns the index that counts.

    `manifests` are those of all shards, in order; `rejections` those of the input.
    """
    readers = [ShardReader(folder, identity, manifest) for manifest in manifests]
    vocab = VocabStatistics.zeros(identity.target.vocab_size)
    for reader in readers:
        vocab.add(reader.vocab())
    # Those of a run that was stopped may be damaged, or from before a shard was made again.
    put_object(folder, VOCAB_FILE, vocab.to_parquet())
    reason = NOT_WRITTEN if identity.text.is_planned else NON_FINITE
    rejected = [*rejections, *_lost(plan, manifests, readers, reason)]
    put_object(folder, REJECTED_FILE, to_jsonl(rejected))

    keys = [
        DUMP_FILE,
        *(plan_key(shard_id) for shard_id in range(len(plan))),
        *(f"{TARGET_FOLDER}/{key}" for key in folder.child(TARGET_FOLDER).list()),
        *(manifest_key(shard_id) for shard_id in range(len(plan))),
        VOCAB_FILE,
        REJECTED_FILE,
        *([AUX_SCALES_FILE] if identity.states_dtype == "int8" else []),
    ]
    objects = tuple(measure_object(folder, key) for key in sorted(keys))
    in_shards = [entry for manifest in manifests for entry in manifest.objects]
    index = DumpIndex(
        fingerprint=identity.fingerprint,
        totals=DumpTotals(
            num_shards=len(manifests),
            num_samples=sum(manifest.num_samples for manifest in manifests),
            num_tokens=sum(manifest.num_tokens for manifest in manifests),
            num_rows=sum(manifest.num_rows for manifest in manifests),
            num_rejected=sum(rejection.kind == "refused" for rejection in rejected),
            num_bytes=sum(entry.size for entry in [*objects, *in_shards]),
            generation=sum_generation(manifests),
        ),
        objects=objects,
    )
    folder.create(INDEX_FILE, index.to_json())
    return parse_index(folder.read(INDEX_FILE), folder.where(INDEX_FILE), identity.fingerprint)


def sum_generation(manifests: Iterable[ShardManifest]) -> GenerationCounts | None:
    """What became of all turns that the target wrote; None where text is given."""
    counts = [manifest.generation for manifest in manifests if manifest.generation is not None]
    return reduce(GenerationCounts.plus, counts) if counts else None


def _lost(
    plan: Plan,
    manifests: Sequence[ShardManifest],
    readers: Sequence[ShardReader],
    reason: str,
) -> list[Rejection]:
    """Samples that are planned but not stored: a shard leaves out those that are not finite."""
    rejections = []
    for samples, manifest, reader in zip(plan, manifests, readers, strict=True):
        if manifest.num_samples == len(samples):
            continue
        stored = {sample.sample_id for sample in reader.samples()}
        rejections += [
            Rejection(sample.source, "refused", f"{sample.source}: {reason}")
            for sample in samples
            if sample.sample_id not in stored
        ]
    return rejections
