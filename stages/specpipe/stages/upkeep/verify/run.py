"""Read everything in a dump and name each object that is damaged, missing or foreign."""

import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.records.dump import (
    DUMP_FILE,
    INDEX_FILE,
    VOCAB_FILE,
    DumpHeader,
    DumpIdentity,
    DumpIndex,
    ShardManifest,
    manifest_key,
)
from specpipe.stages.storage.dump import check_vocab_size, manifest_keys
from specpipe.stages.storage.records import parse_header, parse_index, parse_manifest
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.upkeep.verify.findings import Damage, Findings
from specpipe.stages.upkeep.verify.shard_check import check_shard

__all__ = ["Damage", "VerifyReport", "verify"]

_PLAN = re.compile(r"plan/(\d{6,})\.parquet")


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of reading a whole dump."""

    damages: tuple[Damage, ...]
    """The first problem of each object that is not as it was written, by key."""
    complete: bool
    """Whether the dump is finished: it has an index."""
    num_objects: int
    """Objects that a manifest or the index lists."""
    num_bytes: int


def verify(url: str, *, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read every object that a manifest or the index lists, and check it against all that is known.

    `progress` is called with the bytes read and the bytes there are to read. Damage is reported,
    not raised; raises ConfigError if there is no dump, StoreError if the store fails.

    Memory: two chunks, or a piece of 64 MiB of another object, for each of `NUM_THREADS` threads.
    """
    folder = Folder.open(url)
    findings = Findings(folder, progress or (lambda done, total: None))
    present = findings.sizes
    if DUMP_FILE not in present and INDEX_FILE not in present and not manifest_keys(present):
        raise ConfigError(f"there is no dump at {folder.url}: it has no {DUMP_FILE}")
    header = _read_header(findings)
    fingerprint = header.fingerprint if header else None
    index = _read_index(findings, fingerprint)
    listed = {entry.key: entry for entry in index.objects} if index else {}
    manifests = _read_manifests(findings, fingerprint, {*manifest_keys(listed), *present})
    entries = [*listed.values(), *(entry for m in manifests for entry in m.objects)]
    num_bytes = sum(entry.size for entry in entries)
    # What is there, not what is claimed.
    findings.expect(sum(min(entry.size, present.get(entry.key, 0)) for entry in entries))

    findings.in_parallel(Findings.check_object, listed.values())
    if header:
        total = _check_shards(findings, header.identity, manifests)
        if index:
            _check_index(findings, index, manifests)
            if total and all(findings.is_sound(key) for key in manifest_keys(listed)):
                _check_vocab(findings, total)
    else:
        in_shards = [entry for manifest in manifests for entry in manifest.objects]
        findings.in_parallel(Findings.check_object, in_shards)
    return VerifyReport(findings.damages(), index is not None, len(entries), num_bytes)


def _read_header(findings: Findings) -> DumpHeader | None:
    folder = findings.folder
    try:
        header = parse_header(folder.read_small(DUMP_FILE), folder.where(DUMP_FILE))
        check_vocab_size(folder, header.identity)
        return header
    except IntegrityError as error:
        findings.note(DUMP_FILE, error)
        return None


def _read_index(findings: Findings, fingerprint: str | None) -> DumpIndex | None:
    folder = findings.folder
    if INDEX_FILE not in findings.sizes:
        return None
    try:
        return parse_index(folder.read_small(INDEX_FILE), folder.where(INDEX_FILE), fingerprint)
    except IntegrityError as error:
        findings.note(INDEX_FILE, error)
        return None


def _read_manifests(
    findings: Findings, fingerprint: str | None, keys: Iterable[str]
) -> list[ShardManifest]:
    """The manifests that can be read, in shard order."""

    def read(part: Findings, key: str) -> ShardManifest | None:
        folder = part.folder
        try:
            return parse_manifest(folder.read_small(key), key, folder.where(key), fingerprint)
        except IntegrityError as error:
            part.note(key, error)
            return None

    manifests = findings.in_parallel(read, manifest_keys(keys))
    return sorted((m for m in manifests if m is not None), key=lambda m: m.shard_id)


def _check_index(findings: Findings, index: DumpIndex, manifests: list[ShardManifest]) -> None:
    """The index against the manifests: the same shards, the same totals, a plan for each."""
    listed = {entry.key for entry in index.objects}
    for required in (DUMP_FILE, VOCAB_FILE):
        if required not in listed:
            findings.note(INDEX_FILE, f"does not list {required}")
    for manifest in manifests:
        if manifest_key(manifest.shard_id) not in listed:
            findings.note(manifest_key(manifest.shard_id), f"is not listed in {INDEX_FILE}")
    planned = {manifest_key(int(match[1])) for key in listed if (match := _PLAN.fullmatch(key))}
    if different := sorted(planned ^ {*manifest_keys(listed)}):
        findings.note(INDEX_FILE, f"lists the plan or the manifest alone: {different[0]}")
    totals = index.totals
    counted = (
        len(manifests),
        sum(manifest.num_samples for manifest in manifests),
        sum(manifest.num_tokens for manifest in manifests),
        sum(manifest.num_rows for manifest in manifests),
    )
    written = (totals.num_shards, totals.num_samples, totals.num_tokens, totals.num_rows)
    if counted != written and all(findings.is_sound(key) for key in manifest_keys(listed)):
        findings.note(INDEX_FILE, f"has the totals {written} but the manifests add up to {counted}")


def _check_shards(
    findings: Findings, identity: DumpIdentity, manifests: list[ShardManifest]
) -> VocabStatistics | None:
    """Check all shards; returns the sum of their statistics where all of those are sound."""
    total = VocabStatistics.zeros(identity.target.vocab_size)
    adding = threading.Lock()

    def check(part: Findings, manifest: ShardManifest) -> bool:
        share = check_shard(part, identity, manifest)
        if share is None:
            return False
        with adding:
            total.add(share)
        return True

    return total if all(findings.in_parallel(check, manifests)) else None


def _check_vocab(findings: Findings, total: VocabStatistics) -> None:
    """The dump's statistics against the sum of the shards'."""
    if not findings.is_sound(VOCAB_FILE) or VOCAB_FILE not in findings.sizes:
        return
    folder, vocab_size = findings.folder, len(total.count_V)
    try:
        stored = VocabStatistics.from_parquet(
            folder.read_small(VOCAB_FILE), vocab_size, folder.where(VOCAB_FILE)
        )
    except IntegrityError as error:
        findings.note(VOCAB_FILE, error)
        return
    if not (
        np.array_equal(stored.count_V, total.count_V)
        and np.allclose(stored.mass_V, total.mass_V, rtol=1e-9)
    ):
        findings.note(VOCAB_FILE, "is not the sum over the shards")
