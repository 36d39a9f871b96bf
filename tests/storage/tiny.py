"""Dumps of a few kilobytes, and ways to alter them as somebody with access to every crc could.

Legend: T tokens, S verifier rows, L aux layers, H hidden, K kept logits, V vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from specpipe.schemas.records.dump import (
    CHUNK_TRAILER_BYTES,
    DUMP_FILE,
    INDEX_FILE,
    REJECTED_FILE,
    VOCAB_FILE,
    DumpHeader,
    DumpIdentity,
    DumpIndex,
    DumpTotals,
    GenerationCounts,
    ShardManifest,
    TargetIdentity,
    canonical_sha256,
    manifest_key,
    plan_key,
)
from specpipe.schemas.records.sample import Sample, Source, first_supervised
from specpipe.stages.storage.dump import Dump, manifest_keys
from specpipe.stages.storage.records import parse_index, read_manifest
from specpipe.stages.storage.shard.samples import PlannedSample, plan_to_parquet
from specpipe.stages.storage.shard.scales import AuxScales, write_scales
from specpipe.stages.storage.shard.states import SampleStates
from specpipe.stages.storage.shard.writer import ShardAttempt, ShardWriter
from specpipe.stages.storage.store.crc import chunk_entry, crc32c, object_entry
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.objects import measure_object
from specpipe.stages.storage.vocab import VocabStatistics

VOCAB_SIZE = 23
Pair = tuple[PlannedSample, SampleStates]


def make_identity(
    chunk_tokens: int = 8, hidden: int = 4, num_layers: int = 3, **format: Any
) -> DumpIdentity:
    """`format`: shard_format, logits, states_dtype and compression, where not the default."""
    return DumpIdentity(
        target=TargetIdentity(
            name="tiny",
            architecture="TinyForCausalLM",
            config_sha256="c" * 64,
            weights_sha256="d" * 64,
            tokenizer_sha256="e" * 64,
            hidden_size=hidden,
            vocab_size=VOCAB_SIZE,
            num_layers=8,
        ),
        layers=tuple(range(1, num_layers + 1)),
        compute_dtype="float32",
        chunk_tokens=chunk_tokens,
        shard_tokens=64,
        context_length=64,
        input_sha256="f" * 64,
        **format,
    )


def make_pair(
    identity: DumpIdentity, seed: int, num_tokens: int, spans: Sequence[tuple[int, int]]
) -> Pair:
    """A sample with supervised `spans` and states for it, drawn from `seed`."""
    rng = np.random.default_rng(seed)
    ids_T = rng.integers(0, VOCAB_SIZE, num_tokens).astype(np.int32)
    mask_T = np.zeros(num_tokens, np.uint8)
    for start, stop in spans:
        mask_T[start:stop] = 1
    sample = PlannedSample.of(
        Sample(ids_T, mask_T, Source("data.jsonl", seed + 1), 1 + seed % 3, {"seed": seed})
    )
    num_rows, hidden = sample.num_rows, identity.target.hidden_size

    def bfloat16(*shape: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
        """Finite values of either sign; of all sizes, but for states that int8 is to hold."""
        bits = rng.integers(0, 0x7F80, shape, dtype=np.uint16)
        if identity.states_dtype == "int8":
            bits = bits % np.uint16(0x300) + np.uint16(0x3D00)
        return bits | (rng.integers(0, 2, shape, dtype=np.uint16) << np.uint16(15))

    columns: dict[str, Any] = {"aux_TLH": bfloat16(num_tokens, len(identity.layers), hidden)}
    if identity.logits == "final":
        columns["final_SH"] = bfloat16(num_rows, hidden)
    elif identity.logits == "full":
        columns["logits_SV"] = bfloat16(num_rows, VOCAB_SIZE)
    else:
        ids = rng.permuted(np.tile(np.arange(VOCAB_SIZE, dtype=np.int32), (num_rows, 1)), axis=1)
        columns["topk_ids_SK"] = ids[:, : identity.topk]
        columns["topk_logits_SK"] = bfloat16(num_rows, identity.topk or 0)
    return sample, SampleStates(
        **columns,
        logz_S=rng.normal(size=num_rows).astype(np.float32),
        token_logprob_S=-rng.random(num_rows, dtype=np.float32),
        argmax_S=rng.integers(0, VOCAB_SIZE, num_rows).astype(np.int32),
    )


def make_shards(identity: DumpIdentity) -> list[list[Pair]]:
    """Two shards; the first sample of each crosses chunks, one has two spans."""
    return [
        [
            make_pair(identity, 0, 13, [(5, 13)]),
            make_pair(identity, 1, 9, [(2, 4), (6, 9)]),
            make_pair(identity, 2, 4, [(0, 4)]),
        ],
        [make_pair(identity, 3, 21, [(1, 21)]), make_pair(identity, 4, 3, [(2, 3)])],
    ]


def vocab_of(pairs: Sequence[Pair]) -> VocabStatistics:
    vocab = VocabStatistics.zeros(VOCAB_SIZE)
    for sample, states in pairs:
        following = sample.input_ids[1:][sample.loss_mask[1:] == 1] % VOCAB_SIZE
        np.add.at(vocab.count_V, following, sample.multiplicity)
        np.add.at(vocab.mass_V, states.argmax_S % VOCAB_SIZE, sample.multiplicity * 0.25)
    return vocab


def write_tiny_scales(folder: Folder, identity: DumpIdentity) -> AuxScales | None:
    """The scales of an int8 dump, from states that depend on the identity alone."""
    if identity.states_dtype != "int8":
        return None
    _, states = make_pair(identity, 99, 20, [])
    return write_scales(folder, identity, AuxScales.from_states(states.aux_TLH))


def write_shard(
    folder: Folder,
    identity: DumpIdentity,
    shard_id: int,
    pairs: Sequence[Pair],
    attempt: str | None = None,
    generation: GenerationCounts | None = None,
) -> ShardManifest:
    num_tokens = sum(sample.num_tokens for sample, _ in pairs)
    num_rows = sum(sample.num_rows for sample, _ in pairs)
    this = ShardAttempt(folder, shard_id)
    writer = ShardWriter(
        this if attempt is None else replace(this, name=attempt),
        identity,
        num_tokens,
        num_rows,
        scales=write_tiny_scales(folder, identity),
    )
    for sample, states in pairs:
        writer.append(sample, states)
    return writer.commit(vocab_of(pairs), generation)


def write_dump(
    url: str,
    identity: DumpIdentity,
    shards: Sequence[Sequence[Pair]],
    *,
    complete: bool = True,
    generation: GenerationCounts | None = None,
) -> Folder:
    """A dump with every kind of object; attempts have fixed ids."""
    folder = Folder.open(url)
    header = DumpHeader(
        identity=identity, fingerprint=identity.fingerprint, specpipe_version="0.0.0"
    )
    folder.create(DUMP_FILE, header.to_json())
    folder.create("target/config.json", b'{"vocab_size": 23}\n')
    folder.create("target/head.safetensors", bytes(range(200)))
    rejected = {
        "source": {"file": "data.jsonl", "line": 9},
        "kind": "refused",
        "reason": "empty",
    }
    folder.create(REJECTED_FILE, json.dumps(rejected).encode() + b"\n")
    for shard_id, pairs in enumerate(shards):
        folder.create(
            plan_key(shard_id), plan_to_parquet([_planned(sample) for sample, _ in pairs])
        )
        write_shard(folder, identity, shard_id, pairs, f"{shard_id + 1:016x}", generation)
    if complete:
        folder.create(VOCAB_FILE, Dump.open(url, allow_unfinished=True).vocab().to_parquet())
        write_index(folder, identity)
    return folder


def _planned(sample: PlannedSample) -> PlannedSample:
    """What the plan holds of a sample: of one that the target is to write, the prompt."""
    if sample.max_new_tokens == 0:
        return sample
    end = first_supervised(sample.loss_mask)
    ids_T, mask_T = sample.input_ids[:end], sample.loss_mask[:end]
    return replace(sample, input_ids=ids_T, loss_mask=mask_T)


def write_index(folder: Folder, identity: DumpIdentity) -> None:
    """index.json over what is in the store now."""
    manifests = [
        read_manifest(folder, key, identity.fingerprint) for key in manifest_keys(folder.list())
    ]
    in_shards = {entry.key for manifest in manifests for entry in manifest.objects}
    keys = [key for key in folder.list() if key not in in_shards and key != INDEX_FILE]
    objects = tuple(measure_object(folder, key) for key in keys)
    index = DumpIndex(
        fingerprint=identity.fingerprint,
        totals=DumpTotals(
            num_shards=len(manifests),
            num_samples=sum(manifest.num_samples for manifest in manifests),
            num_tokens=sum(manifest.num_tokens for manifest in manifests),
            num_rows=sum(manifest.num_rows for manifest in manifests),
            num_rejected=1,
            num_bytes=sum(e.size for m in manifests for e in m.objects)
            + sum(entry.size for entry in objects),
            generation=manifests[0].generation if manifests else None,
        ),
        objects=objects,
    )
    folder.write(INDEX_FILE, index.to_json())


def replace_object(folder: Folder, identity: DumpIdentity, key: str, payload: bytes) -> None:
    """Replace a shard's object, with its trailer, the manifest and the index to match."""
    shard_id = int(key.split("/")[1][:6])
    manifest = read_manifest(folder, manifest_key(shard_id), identity.fingerprint)
    entries = []
    for entry in manifest.objects:
        if entry.key == key and entry.trailer_bytes:
            crc = crc32c(payload)
            data = payload + crc.to_bytes(CHUNK_TRAILER_BYTES, "little")
            entries.append(chunk_entry(key, len(data), crc))
            folder.write(key, data)
        elif entry.key == key:
            entries.append(object_entry(key, payload))
            folder.write(key, payload)
        else:
            entries.append(entry)
    replace_manifest(folder, identity, manifest, objects=tuple(entries))


def replace_manifest(
    folder: Folder, identity: DumpIdentity, manifest: ShardManifest, **changes: Any
) -> None:
    """Alter a manifest, with its own hash and the index to match."""
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields}
    altered = ShardManifest.model_construct(**{**fields, **changes})
    content = altered.model_dump(mode="json", exclude={"content_sha256"})
    seal = {"content_sha256": canonical_sha256(content)}
    key = manifest_key(manifest.shard_id)
    folder.write(key, altered.model_copy(update=seal).to_json())
    index = parse_index(folder.read(INDEX_FILE), INDEX_FILE, identity.fingerprint)
    objects = tuple(measure_object(folder, entry.key) for entry in index.objects)
    folder.write(
        INDEX_FILE,
        DumpIndex(fingerprint=index.fingerprint, totals=index.totals, objects=objects).to_json(),
    )


def use_everything(url: str) -> None:
    """What a trainer does with a dump before and while it uses the samples."""
    dump = Dump.open(url)
    dump.check_objects()
    dump.check_metadata()
    dump.vocab()
    for name in ("config.json", "head.safetensors"):
        dump.target_file(name)
    for shard_id in dump.manifests:
        reader = dump.shard(shard_id)
        reader.samples()
        reader.vocab()
        reader.read_all()


def equal_states(a: SampleStates, b: SampleStates) -> bool:
    """Bit for bit."""
    left, right = a.columns(), b.columns()
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def concatenated(states: Sequence[SampleStates]) -> SampleStates:
    def joined(a: SampleStates, b: SampleStates) -> SampleStates:
        right = b.columns()
        return SampleStates.of_columns(
            {name: np.concatenate([left, right[name]]) for name, left in a.columns().items()}
        )

    return reduce(joined, states)
