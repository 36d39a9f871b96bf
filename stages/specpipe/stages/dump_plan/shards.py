"""Which sample is in which shard: a pure function of the accepted samples and the shard size."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import INDEX_FILE, MOST_SHARD_SAMPLES, DumpIndex, plan_key
from specpipe.schemas.records.sample import Sample
from specpipe.stages.storage.shard.samples import PlannedSample, plan_from_parquet, plan_to_parquet
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.objects import read_object

Plan = list[list[PlannedSample]]
"""The samples of each shard."""

_PARALLEL_READS = 8
_REMOVE = "remove it and run `specpipe dump` again"


def input_sha256(samples: Sequence[Sample]) -> str:
    """Hash over the accepted samples (tokens, masks, multiplicities), in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.sample_id} {sample.multiplicity}\n".encode())
    return digest.hexdigest()


def make_plan(samples: Sequence[Sample], shard_tokens: int) -> Plan:
    """Shards are filled in input order up to `shard_tokens`; a longer sample has its own.

    No shard has more than `MOST_SHARD_SAMPLES`.

    Inside a shard the samples ascend by length, so that a batch holds like lengths.
    """
    shards: Plan = []
    room = 0
    for sample in samples:
        planned = PlannedSample.of(sample)
        if not shards or planned.size > room or len(shards[-1]) == MOST_SHARD_SAMPLES:
            shards.append([])
            room = shard_tokens
        shards[-1].append(planned)
        room -= planned.size
    return [sorted(shard, key=lambda s: (s.size, s.sample_id)) for shard in shards]


def read_plan(folder: Folder, num_shards: int, sha256: str) -> Plan:
    """The plan that is in the store; raises IntegrityError unless it has this hash."""
    files = _plan_files(folder, num_shards)
    if _sha256(files) != sha256:
        raise IntegrityError(f"{folder.where('plan')} is damaged; {_REMOVE}")
    return _parsed(folder, files)


def read_listed_plan(folder: Folder, index: DumpIndex) -> Plan:
    """The plan that the index of a complete dump lists; raises IntegrityError where damaged."""
    entries = {entry.key: entry for entry in index.objects}
    keys = [plan_key(shard_id) for shard_id in range(index.totals.num_shards)]
    if lacking := [key for key in keys if key not in entries]:
        raise IntegrityError(f"{folder.where(INDEX_FILE)} does not list {lacking[0]}")
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return _parsed(folder, pool.map(lambda key: read_object(folder, entries[key]), keys))


def _parsed(folder: Folder, files: Iterable[bytes]) -> Plan:
    """The plan of the shards' files, in their order."""
    return [
        plan_from_parquet(data, folder.where(plan_key(shard_id)))
        for shard_id, data in enumerate(files)
    ]


def plan_sha256(folder: Folder, num_shards: int) -> str:
    """Hash over the files of the plan, as they are in the store."""
    return _sha256(_plan_files(folder, num_shards))


def _plan_files(folder: Folder, num_shards: int) -> list[bytes]:
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return list(pool.map(folder.read, map(plan_key, range(num_shards))))


def _sha256(files: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for data in files:
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def write_plan(folder: Folder, plan: Plan) -> None:
    """Write what is missing of plan/; raises IntegrityError where another plan stands.

    Where its samples stood in the input does not matter.
    """
    for shard_id, samples in enumerate(plan):
        key, data = plan_key(shard_id), plan_to_parquet(samples)
        if folder.create(key, data) or folder.read(key) == data:
            continue
        # The bytes may also differ by the writing library, or by where the input lay.
        try:
            stored = plan_from_parquet(folder.read(key), folder.where(key))
        except IntegrityError as error:
            raise IntegrityError(f"{error}; {_REMOVE}") from error
        if list(map(_contents, stored)) != list(map(_contents, samples)):
            raise IntegrityError(
                f"{folder.where(key)} is damaged: it holds another plan than dump.json and the "
                f"input make; {_REMOVE}"
            )


def _contents(sample: PlannedSample) -> tuple[Any, ...]:
    return (
        sample.sample_id,
        sample.prompt_id,
        sample.multiplicity,
        sample.input_ids.tobytes(),
        sample.loss_mask.tobytes(),
        sample.metadata,
    )
