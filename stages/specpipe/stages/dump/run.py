"""`specpipe dump`: input -> plan -> shards -> index, each step ending on the store."""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.schemas.records.dump import INDEX_FILE, REJECTED_FILE, DumpIndex, ShardManifest
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.finalise import finalise, sum_generation
from specpipe.stages.dump.worker import CHECK_SAMPLES, Worker
from specpipe.stages.dump_plan.claim import check_unclaimed
from specpipe.stages.dump_plan.prepared import Prepared, prepare
from specpipe.stages.dump_plan.shards import Plan
from specpipe.stages.dump_plan.stamp import make_stamp, read_stamp
from specpipe.stages.storage.committed import committed_shards, finished_index, withdraw
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.text.rejected import count_kinds

Execute = Callable[[DumpConfig, Prepared, Sequence[int], Callable[[int], None]], None]
"""Makes the shards of these ids, wherever, and reports the tokens that are done."""


@dataclass(frozen=True, slots=True)
class DumpResult:
    url: str
    fingerprint: str
    complete: bool
    """Whether all shards are there; False where other workers have theirs to do yet."""
    num_shards: int
    """Shards that are committed."""
    num_samples: int
    num_tokens: int
    num_rows: int
    num_rejected: int
    """Inputs that were refused."""
    num_truncated: int
    """Samples that were cut to the context length."""
    num_left_out: int
    """Samples of which the context length left nothing supervised, and prompts that fill it."""
    num_bytes: int
    seconds: float
    did_nothing: bool
    """The dump was complete already."""
    generation: dict[str, int] | None = None
    """What became of the turns that the target wrote (GenerationCounts); None for given text."""


def run(
    config: DumpConfig,
    *,
    execute: Execute | None = None,
    progress: Callable[[int, int], None] | None = None,
    check_samples: int = CHECK_SAMPLES,
) -> DumpResult:
    """Dump the target's states over the data; run again after a kill, it continues.

    A dump of which objects are missing, or of another size than they were written with, is taken
    up again and completed. `execute` runs the workers; left out, one works in this process.
    `progress` takes the tokens that are done and all of them; the shares of other commands do not
    count. The first `check_samples` samples of the worker in this process, and at least one, are
    compared with a full forward pass of the target.
    """
    started = time.monotonic()
    folder = Folder.open(config.out)
    stamp = make_stamp(config)
    finished = finished_index(config.out)
    if finished and read_stamp(folder, stamp):
        return _finished(folder, finished, started, did_nothing=True)
    if finished is None:
        folder.check_writable()
        check_unclaimed(folder)
    prepared = prepare(config, folder, stamp)
    was_finished = finished is not None
    # Another worker may have finished it meanwhile, or nothing but the plan was missing.
    finished = finished or finished_index(config.out)
    if finished is not None:
        return _finished(folder, finished, started, did_nothing=was_finished)
    if folder.exists(INDEX_FILE):
        folder.remove(INDEX_FILE)

    plan, fingerprint = prepared.plan, prepared.identity.fingerprint
    done, broken = committed_shards(folder, len(plan), fingerprint)
    _check_losses(config, prepared, done)
    for manifest in broken:
        withdraw(folder, manifest)
    pending = [shard_id for shard_id in range(len(plan)) if shard_id not in done]
    share = _share(config, pending)
    count = _Count(progress, num_done=_num_tokens(plan, done), num_ours=_num_tokens(plan, share))
    if share:
        (execute or _here(check_samples))(config, prepared, share, count.add)
    elif not pending:
        # A shard that is there is not made again, but the target is proved, and its files are.
        (execute or _here(check_samples))(config, prepared, [0], lambda num_tokens: None)

    done, _ = committed_shards(folder, len(plan), fingerprint)
    _check_losses(config, prepared, done)
    if len(done) < len(plan):
        return _unfinished(prepared, done, started)
    manifests = [done[shard_id] for shard_id in range(len(plan))]
    index = finalise(folder, prepared.identity, plan, manifests, prepared.rejections)
    return _finished(folder, index, started, did_nothing=False)


def _here(check_samples: int) -> Execute:
    def execute(
        config: DumpConfig,
        prepared: Prepared,
        shard_ids: Sequence[int],
        advance: Callable[[int], None],
    ) -> None:
        with Worker(config, prepared, shard_ids[0], check_samples) as worker:
            for shard_id in shard_ids:
                worker.make(shard_id, advance)

    return execute


def _share(config: DumpConfig, pending: list[int]) -> list[int]:
    """The shards that this command is to make."""
    if config.worker_index == "auto":
        raise ConfigError("worker_index auto is for the command line: give a number")
    if config.worker_index is not None and config.worker_count is not None:
        return [i for i in pending if i % config.worker_count == config.worker_index]
    # Two commands on one dump that begin at different shards meet late.
    first = random.randrange(len(pending)) if pending else 0
    return pending[first:] + pending[:first]


def _check_losses(config: DumpConfig, prepared: Prepared, done: dict[int, ShardManifest]) -> None:
    """Raise InputError where committed shards had to do without too many samples."""
    num_refused = sum(rejection.kind == "refused" for rejection in prepared.rejections)
    num_lost = sum(len(prepared.plan[i]) - done[i].num_samples for i in done)
    if num_refused + num_lost > config.max_rejected:
        raise InputError(
            f"{num_refused} inputs are refused and the target gives no usable states for "
            f"{num_lost} more: more than --max-rejected {config.max_rejected}"
        )


def _num_tokens(plan: Plan, shard_ids: Iterable[int]) -> int:
    return sum(sample.size for shard_id in shard_ids for sample in plan[shard_id])


class _Count:
    """Adds up the tokens that are done and reports them."""

    def __init__(
        self, progress: Callable[[int, int], None] | None, num_done: int, num_ours: int
    ) -> None:
        self._progress = progress
        self._all_tokens = num_done + num_ours
        self._done = 0
        self.add(num_done)

    def add(self, num_tokens: int) -> None:
        self._done += num_tokens
        if self._progress is not None:
            self._progress(self._done, self._all_tokens)


def _unfinished(prepared: Prepared, done: dict[int, ShardManifest], started: float) -> DumpResult:
    manifests = done.values()
    generation = sum_generation(manifests)
    kinds = [rejection.kind for rejection in prepared.rejections]
    return DumpResult(
        url=prepared.folder.url,
        fingerprint=prepared.identity.fingerprint,
        complete=False,
        num_shards=len(manifests),
        num_samples=sum(manifest.num_samples for manifest in manifests),
        num_tokens=sum(manifest.num_tokens for manifest in manifests),
        num_rows=sum(manifest.num_rows for manifest in manifests),
        num_rejected=kinds.count("refused"),
        num_truncated=kinds.count("truncated"),
        num_left_out=kinds.count("left_out"),
        num_bytes=sum(entry.size for manifest in manifests for entry in manifest.objects),
        seconds=time.monotonic() - started,
        did_nothing=False,
        generation=generation.model_dump() if generation else None,
    )


def _finished(folder: Folder, index: DumpIndex, started: float, *, did_nothing: bool) -> DumpResult:
    totals = index.totals
    kinds = count_kinds(folder.read(REJECTED_FILE))
    return DumpResult(
        url=folder.url,
        fingerprint=index.fingerprint,
        complete=True,
        num_shards=totals.num_shards,
        num_samples=totals.num_samples,
        num_tokens=totals.num_tokens,
        num_rows=totals.num_rows,
        num_rejected=totals.num_rejected,
        num_truncated=kinds["truncated"],
        num_left_out=kinds["left_out"],
        num_bytes=totals.num_bytes,
        seconds=time.monotonic() - started,
        did_nothing=did_nothing,
        generation=totals.generation.model_dump() if totals.generation else None,
    )
