"""`specpipe gc`: remove the files of attempts that lost and of writers that were killed."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from specpipe.schemas.errors import ConfigError, IntegrityError, UnfinishedError
from specpipe.schemas.records.dump import DUMP_FILE, INDEX_FILE
from specpipe.stages.storage.committed import committed_shard
from specpipe.stages.storage.dump import manifest_keys
from specpipe.stages.storage.records import parse_header, parse_index, read_manifest
from specpipe.stages.storage.store.folder import HOW_TO_REPAIR, Folder

_ATTEMPT = re.compile(r"(shards/(\d{6,})-[0-9a-f]{8,32})/")


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that no manifest names: the folder of an attempt, or a half-written object."""

    key: str
    num_objects: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GcResult:
    url: str
    complete: bool
    """Whether the dump is finished."""
    is_dry_run: bool
    """Nothing was removed: `garbage` is what would be."""
    garbage: tuple[Garbage, ...]
    num_objects: int
    num_bytes: int


def gc(
    url: str,
    *,
    dry_run: bool = False,
    force: bool = False,
    removed: Callable[[Garbage], None] = lambda garbage: None,
) -> GcResult:
    """Remove the folders of attempts that no manifest names, and what was left half-written.

    What a manifest or the index names is never removed, nor what symbolic links lead to. In an
    unfinished dump nothing tells an attempt that was given up from one that somebody is just
    writing: raises UnfinishedError there, unless it is a `dry_run` or `force` says that nobody is
    at work. Raises ConfigError if there is no dump, IntegrityError where a manifest or the index
    cannot be read or a manifest is missing.
    """
    folder = Folder.open(url)
    if not folder.exists(DUMP_FILE):
        raise ConfigError(f"there is no dump at {folder.url}: it has no {DUMP_FILE}")
    fingerprint = parse_header(folder.read_small(DUMP_FILE), folder.where(DUMP_FILE)).fingerprint
    # Before the manifests: an attempt that is committed meanwhile is then named by one.
    present, half_written = folder.sizes(links=False), folder.leftovers()
    complete = _check_index(folder, fingerprint)
    if not (complete or dry_run or force):
        raise UnfinishedError(
            f"the dump at {folder.url} is unfinished: workers may be writing to just what would be "
            "removed. Finish it with `specpipe dump` first, or give --force if no worker is at "
            "work (--dry-run shows what there is)"
        )
    keys = manifest_keys(folder.list("shards"))
    kept = {read_manifest(folder, key, fingerprint).folder for key in keys}
    garbage = _garbage(present, half_written, kept)
    if not dry_run:
        for piece in garbage:
            _remove(folder, fingerprint, piece)
            removed(piece)
    return GcResult(
        url=folder.url,
        complete=complete,
        is_dry_run=dry_run,
        garbage=tuple(garbage),
        num_objects=sum(piece.num_objects for piece in garbage),
        num_bytes=sum(piece.num_bytes for piece in garbage),
    )


def _check_index(folder: Folder, fingerprint: str) -> bool:
    """Whether there is an index; raises IntegrityError where a manifest that it names is missing.

    Without its manifest, a shard's folder would look like that of an attempt that lost.
    """
    if not folder.exists(INDEX_FILE):
        return False
    index = parse_index(folder.read_small(INDEX_FILE), folder.where(INDEX_FILE), fingerprint)
    named = manifest_keys(entry.key for entry in index.objects)
    missing = sorted({*named} - {*folder.list("shards")})
    if missing:
        raise IntegrityError(f"{folder.where(missing[0])} is missing; {HOW_TO_REPAIR}")
    return True


def _garbage(
    present: dict[str, int], half_written: dict[str, int], kept: Iterable[str]
) -> list[Garbage]:
    kept = {*kept}
    attempts: dict[str, list[int]] = {}
    alone = []
    for key, size in sorted((present | half_written).items()):
        attempt = _ATTEMPT.match(key)
        if attempt and attempt[1] not in kept:
            attempts.setdefault(attempt[1], []).append(size)
        elif key in half_written:
            alone.append(Garbage(key, 1, size))
    return [Garbage(key, len(sizes), sum(sizes)) for key, sizes in attempts.items()] + alone


def _remove(folder: Folder, fingerprint: str, garbage: Garbage) -> None:
    """Remove it, unless it is an attempt that a manifest has come to name meanwhile."""
    attempt = _ATTEMPT.match(f"{garbage.key}/")
    if attempt:
        committed = committed_shard(folder, int(attempt[2]), fingerprint)
        if committed is not None and committed.folder == garbage.key:
            raise UnfinishedError(
                f"{folder.where(garbage.key)} was committed just now: a worker is at work, wait "
                "until the dump is complete"
            )
    folder.remove(garbage.key)
