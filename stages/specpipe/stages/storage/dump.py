"""A dump opened for reading."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from specpipe.schemas.errors import ConfigError, IntegrityError, UnfinishedError
from specpipe.schemas.records.dump import (
    DUMP_FILE,
    HEAD_WEIGHTS_FILE,
    INDEX_FILE,
    TARGET_FOLDER,
    VOCAB_FILE,
    DumpHeader,
    DumpIdentity,
    DumpIndex,
    ObjectEntry,
    ShardManifest,
)
from specpipe.stages.storage.records import parse_header, parse_index, parse_manifest
from specpipe.stages.storage.shard.reader import ShardReader
from specpipe.stages.storage.store.folder import HOW_TO_REPAIR, Folder
from specpipe.stages.storage.store.objects import check_object, read_object
from specpipe.stages.storage.vocab import VocabStatistics

_MANIFEST = re.compile(r"shards/\d{6,}\.manifest\.json")
_PARALLEL_READS = 8
_USUAL_VOCAB = 2**20


class Dump:
    """The records of a dump: identity, the manifest of each committed shard, the index."""

    def __init__(
        self,
        folder: Folder,
        header: DumpHeader,
        manifests: dict[int, ShardManifest],
        index: DumpIndex | None,
    ) -> None:
        self.folder = folder
        self.header = header
        self.manifests = manifests
        """By shard id, ascending."""
        self.index = index
        """None while the dump is unfinished."""

    @classmethod
    def open(cls, url: str, *, allow_unfinished: bool = False) -> "Dump":
        """Read and check the records of the dump at a path or fsspec URL.

        Raises ConfigError if there is no dump, UnfinishedError if it has no index (unless
        allowed), IntegrityError if a record is damaged, missing or another dump's.
        """
        folder = Folder.open(url)
        if not folder.exists(DUMP_FILE):
            raise ConfigError(f"there is no dump at {folder.url}: it has no {DUMP_FILE}")
        header = parse_header(folder.read_small(DUMP_FILE), folder.where(DUMP_FILE))
        if not folder.exists(INDEX_FILE):
            if not allow_unfinished:
                raise UnfinishedError(
                    f"the dump at {folder.url} is unfinished: it has no {INDEX_FILE}; run "
                    "`specpipe dump` again to finish it"
                )
            index = None
            entries = None
            keys = manifest_keys(folder.list("shards"))
        else:
            where = folder.where(INDEX_FILE)
            index = parse_index(folder.read_small(INDEX_FILE), where, header.fingerprint)
            entries = {entry.key: entry for entry in index.objects}
            if DUMP_FILE not in entries:
                raise IntegrityError(f"{where} does not list {DUMP_FILE}")
            read_object(folder, entries[DUMP_FILE])
            keys = manifest_keys(entries)

        check_vocab_size(folder, header.identity)

        def read(key: str) -> ShardManifest:
            data = read_object(folder, entries[key]) if entries else folder.read_small(key)
            return parse_manifest(data, key, folder.where(key), header.fingerprint)

        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            manifests = {manifest.shard_id: manifest for manifest in pool.map(read, keys)}
        return cls(folder, header, dict(sorted(manifests.items())), index)

    @property
    def identity(self) -> DumpIdentity:
        return self.header.identity

    @property
    def entries(self) -> list[ObjectEntry]:
        """Every object that a manifest or the index lists."""
        listed = [entry for manifest in self.manifests.values() for entry in manifest.objects]
        return listed + list(self.index.objects if self.index else ())

    @property
    def num_bytes(self) -> int:
        """Size of all listed objects."""
        return sum(entry.size for entry in self.entries)

    def shard(self, shard_id: int, layers: Sequence[int] | None = None) -> ShardReader:
        """A committed shard; of its auxiliary layers only those given are read.

        Raises IntegrityError if its manifest does not list what it must.
        """
        return ShardReader(self.folder, self.identity, self.manifests[shard_id], layers)

    def vocab(self) -> VocabStatistics:
        """Vocabulary statistics of the dump; of an unfinished one, of its committed shards."""
        if self.index is not None:
            return VocabStatistics.from_parquet(
                self._listed(VOCAB_FILE),
                self.identity.target.vocab_size,
                self.folder.where(VOCAB_FILE),
            )
        return self.summed_vocab()

    def summed_vocab(self) -> VocabStatistics:
        """The committed shards' statistics, added in shard order."""
        total = VocabStatistics.zeros(self.identity.target.vocab_size)
        for shard_id in self.manifests:
            total.add(self.shard(shard_id).vocab())
        return total

    def target_file(self, name: str) -> bytes:
        """A file of `target/`, such as `config.json`. Raises IntegrityError if it is missing."""
        return self._listed(f"{TARGET_FOLDER}/{name}")

    def has_target_file(self, name: str) -> bool:
        key = f"{TARGET_FOLDER}/{name}"
        if self.index is None:
            return self.folder.exists(key)
        return any(entry.key == key for entry in self.index.objects)

    def check_objects(self) -> None:
        """That every listed object exists and has its size; contents are not read.

        Raises IntegrityError naming the first few that do not.
        """
        sizes = self.folder.sizes()
        bad = [entry.key for entry in self.entries if sizes.get(entry.key) != entry.size]
        if bad:
            named = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            raise IntegrityError(
                f"{self.folder.url}: objects are missing or of another size than they were "
                f"written with: {named}; {HOW_TO_REPAIR}"
            )

    def check_metadata(self) -> None:
        """That all listed objects but chunks and target weights have their crc32c.

        Raises IntegrityError naming the first that does not.
        """
        small = [
            entry
            for entry in self.entries
            if not entry.trailer_bytes and not entry.key.endswith(".safetensors")
        ]
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            for _ in pool.map(lambda entry: check_object(self.folder, entry), small):
                pass

    def _listed(self, key: str) -> bytes:
        if self.index is None:
            return self.folder.read(key)
        entry = next((entry for entry in self.index.objects if entry.key == key), None)
        if entry is None:
            raise IntegrityError(f"{self.folder.where(INDEX_FILE)} does not list {key}")
        return read_object(self.folder, entry)


def check_vocab_size(folder: Folder, identity: DumpIdentity) -> None:
    """Raise IntegrityError for a vocabulary that the stored lm_head cannot have.

    Statistics take memory for each token that dump.json claims.
    """
    vocab_size = identity.target.vocab_size
    if vocab_size <= _USUAL_VOCAB:
        return
    head_bytes = folder.size(f"{TARGET_FOLDER}/{HEAD_WEIGHTS_FILE}") or 0
    if head_bytes < vocab_size * identity.target.hidden_size:
        raise IntegrityError(
            f"{folder.where(DUMP_FILE)} is damaged: it claims a vocabulary of {vocab_size} tokens "
            f"of {identity.target.hidden_size} numbers, and {HEAD_WEIGHTS_FILE} has {head_bytes} "
            "bytes"
        )


def manifest_keys(keys: Iterable[str]) -> list[str]:
    """Those of the keys that are shard manifests, sorted."""
    return sorted(key for key in keys if _MANIFEST.fullmatch(key))
