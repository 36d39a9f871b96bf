"""What earlier runs and other workers have finished already: some shards, or the whole dump.

Both go by the store's listing: an object that is missing, or not as long as it was written, takes
its shard with it. So whoever removes damaged objects has them made again by the next run.
"""

from specpipe.schemas.errors import IntegrityError, UnfinishedError
from specpipe.schemas.records.dump import (
    DUMP_FILE,
    INDEX_FILE,
    REJECTED_FILE,
    DumpIndex,
    ShardManifest,
    manifest_key,
)
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.records import read_manifest
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.objects import read_object


def finished_index(url: str) -> DumpIndex | None:
    """The index of the dump at `url`, if all that the dump lists is there; None if not.

    Cheap: records and statistics are read, all else is looked up by its size.
    """
    folder = Folder.open(url)
    if not folder.exists(DUMP_FILE) or not folder.exists(INDEX_FILE):
        return None
    try:
        dump = Dump.open(url)
        dump.check_objects()
        dump.vocab()
        for entry in dump.index.objects if dump.index else ():
            if entry.key == REJECTED_FILE:
                read_object(folder, entry)
    except (IntegrityError, UnfinishedError):
        return None
    return dump.index


def committed_shards(
    folder: Folder, num_shards: int, fingerprint: str
) -> tuple[dict[int, ShardManifest], list[ShardManifest]]:
    """The manifests that count, by shard, and those whose objects are no longer all there.

    Raises IntegrityError for a manifest that is damaged or belongs to another dump.
    """
    sizes = folder.sizes("shards")
    sound: dict[int, ShardManifest] = {}
    broken = []
    for shard_id in range(num_shards):
        if manifest_key(shard_id) not in sizes:
            continue
        manifest = read_manifest(folder, manifest_key(shard_id), fingerprint)
        if all(sizes.get(entry.key) == entry.size for entry in manifest.objects):
            sound[shard_id] = manifest
        else:
            broken.append(manifest)
    return sound, broken


def committed_shard(folder: Folder, shard_id: int, fingerprint: str) -> ShardManifest | None:
    """The shard's manifest, if it has one by now."""
    key = manifest_key(shard_id)
    return read_manifest(folder, key, fingerprint) if folder.exists(key) else None


def withdraw(folder: Folder, manifest: ShardManifest) -> None:
    """Remove a manifest whose objects are not all there; its shard is to be made again.

    Not if another worker has replaced it meanwhile.
    """
    if committed_shard(folder, manifest.shard_id, manifest.fingerprint) == manifest:
        folder.remove(manifest_key(manifest.shard_id))
