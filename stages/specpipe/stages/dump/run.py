"""`specpipe dump`: input -> plan -> shards -> index, each step ending on the store."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from specpipe.schemas.config import DumpConfig
from specpipe.schemas.dump import (
    INDEX_FILE,
    REJECTED_FILE,
    TARGET_FOLDER,
    DumpIdentity,
    DumpIndex,
    TextOrigin,
    chunk_tokens,
    default_layers,
)
from specpipe.schemas.errors import ConfigError
from specpipe.stages.dump.claim import claim, claimed_identity
from specpipe.stages.dump.committed import (
    committed_shard,
    committed_shards,
    finished_index,
    withdraw,
)
from specpipe.stages.dump.conversation import ChatTemplate
from specpipe.stages.dump.finalise import finalise
from specpipe.stages.dump.inputs import read_samples
from specpipe.stages.dump.plan import Plan, input_sha256, make_plan, write_plan
from specpipe.stages.dump.rejected import Rejections, count_kinds
from specpipe.stages.dump.shard import write_shard
from specpipe.stages.dump.stamp import is_stamped, make_stamp, write_stamp
from specpipe.stages.storage.folder import Folder
from specpipe.stages.storage.objects import put_object
from specpipe.stages.target.head import VerifierHead, save_head
from specpipe.stages.target.hf import HfBackend, compute_dtype
from specpipe.stages.target.identity import load_config, target_identity
from specpipe.stages.target.location import CONFIG_FILE, local_folder, tokenizer_files
from specpipe.stages.target.proof import ProofSample, prove


@dataclass(frozen=True, slots=True)
class DumpResult:
    url: str
    fingerprint: str
    complete: bool
    num_samples: int
    num_tokens: int
    num_rows: int
    num_rejected: int
    """Inputs that were refused."""
    num_truncated: int
    """Samples that were cut to the context length."""
    num_left_out: int
    """Samples of which the context length left nothing supervised."""
    num_bytes: int
    seconds: float
    did_nothing: bool
    """The dump was complete already."""


def run(
    config: DumpConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    check_samples: int = 4,
) -> DumpResult:
    """Dump the target's states over the data; run again after a kill, it continues.

    A dump of which objects are missing, or of another size than they were written with, is taken
    up again and completed. `progress` takes the tokens that are done and all of them. The first
    `check_samples` samples of each run, and at least one, are compared with a full forward pass of
    the target.
    """
    started = time.monotonic()
    folder = Folder.open(config.out)
    stamp = make_stamp(config)
    finished = finished_index(config.out)
    if finished and is_stamped(folder, stamp):
        return _result(folder, finished, started, did_nothing=True)

    target_folder = local_folder(config.target, config.revision)
    rejections = Rejections(config.max_rejected)
    plan, identity = _plan(config, target_folder, rejections)
    claimed = claimed_identity(folder, identity)
    did_nothing = claimed is not None and finished is not None
    index = finished if claimed is not None else None
    if index is None:
        index = _write(
            config, folder, target_folder, plan, identity, rejections, progress, check_samples
        )
    write_stamp(folder, stamp)
    return _result(folder, index, started, did_nothing=did_nothing)


def _plan(
    config: DumpConfig, target_folder: Path, rejections: Rejections
) -> tuple[Plan, DumpIdentity]:
    """What is to be dumped, from the input and the target's files; nothing is written."""
    trust = config.trust_remote_code
    model = load_config(target_folder, trust_remote_code=trust).get_text_config(decoder=True)
    layers = _layers(config.layers, model.num_hidden_layers)
    context_length = _context_length(
        config.context_length, getattr(model, "max_position_embeddings", None)
    )
    template = ChatTemplate(target_folder, trust_remote_code=trust)
    samples = read_samples(config.data, template, model.vocab_size, context_length, rejections)
    temperature = config.text_temperature
    identity = DumpIdentity(
        target=target_identity(config.target, config.revision, trust_remote_code=trust),
        layers=layers,
        compute_dtype=str(compute_dtype(config.dtype, model, target_folder)).removeprefix("torch."),
        shard_format=config.format,
        logits=config.logits,
        states_dtype=config.states,
        compression=config.compression,
        chunk_tokens=config.chunk_tokens or chunk_tokens(len(layers), model.hidden_size),
        shard_tokens=config.shard_tokens,
        context_length=context_length,
        input_sha256=input_sha256(samples),
        text=TextOrigin()
        if temperature is None
        else TextOrigin(kind="generated", temperature=temperature, stated=True),
    )
    return make_plan(samples, config.shard_tokens), identity


def _write(
    config: DumpConfig,
    folder: Folder,
    target_folder: Path,
    plan: Plan,
    identity: DumpIdentity,
    rejections: Rejections,
    progress: Callable[[int, int], None] | None,
    check_samples: int,
) -> DumpIndex:
    """All that is missing of the dump, up to its index."""
    backend = HfBackend(config, identity.layers)
    identity = claim(folder, identity)
    if folder.exists(INDEX_FILE):
        # Another worker may have finished while the target was loaded.
        if finished := finished_index(config.out):
            return finished
        folder.remove(INDEX_FILE)
    write_plan(folder, plan)
    target = folder.child(TARGET_FOLDER)
    _write_target(target, target_folder, backend)
    head = VerifierHead.load(target.read, backend.device)
    if len(head.lm_head_VH) != identity.target.vocab_size:
        raise ConfigError(
            f"the target's lm_head has {len(head.lm_head_VH)} rows, its config says a vocabulary "
            f"of {identity.target.vocab_size}"
        )
    done, broken = committed_shards(folder, len(plan), identity.fingerprint)
    for shard_id, manifest in done.items():
        rejections.lost_before(len(plan[shard_id]) - manifest.num_samples)
    pending = [shard_id for shard_id in range(len(plan)) if shard_id not in done]
    prove(backend, head, _proof_samples(plan, pending or [*done], max(1, check_samples)))
    for manifest in broken:
        withdraw(folder, manifest)

    count = _Count(progress, sum(sample.num_tokens for sample in chain(*plan)))
    count.add(sum(sample.num_tokens for shard_id in done for sample in plan[shard_id]))
    # Workers that begin at different shards meet late.
    first = random.randrange(len(pending)) if pending else 0
    for shard_id in pending[first:] + pending[:first]:
        committed = committed_shard(folder, shard_id, identity.fingerprint)
        if committed is not None:
            rejections.lost_before(len(plan[shard_id]) - committed.num_samples)
            count.add(sum(sample.num_tokens for sample in plan[shard_id]))
        done[shard_id] = committed or write_shard(
            folder,
            identity,
            shard_id,
            plan[shard_id],
            backend,
            head,
            config.batch_tokens,
            refuse=lambda sample, reason: rejections.lose(sample.source, reason),
            progress=count.add,
        )
    manifests = [done[shard_id] for shard_id in range(len(plan))]
    return finalise(folder, identity, plan, manifests, rejections.of_input)


class _Count:
    """Adds up the tokens that are done and reports them."""

    def __init__(self, progress: Callable[[int, int], None] | None, all_tokens: int) -> None:
        self._progress = progress
        self._all_tokens = all_tokens
        self._done = 0

    def add(self, num_tokens: int) -> None:
        self._done += num_tokens
        if self._progress is not None:
            self._progress(self._done, self._all_tokens)


def _layers(given: tuple[int, ...] | None, num_layers: int) -> tuple[int, ...]:
    try:
        layers = default_layers(num_layers) if given is None else given
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if list(layers) != sorted({k for k in layers if 1 <= k <= num_layers}) or not layers:
        raise ConfigError(
            f"layers {', '.join(map(str, layers))}: the ids must ascend within 1..{num_layers} "
            "(id k is what enters decoder layer k)"
        )
    return layers


def _context_length(given: int | None, of_target: int | None) -> int:
    if given is None and of_target is None:
        raise ConfigError("the target's config has no maximum length: give --context-length")
    if given is not None and of_target is not None and given > of_target:
        raise ConfigError(f"context_length {given} is beyond the target's maximum of {of_target}")
    return given or of_target or 0


def _write_target(target: Folder, target_folder: Path, backend: HfBackend) -> None:
    """All that training needs of the target; what is there already is made what it must be."""
    for path in [target_folder / CONFIG_FILE, *tokenizer_files(target_folder)]:
        put_object(target, path.name, path.read_bytes())
    save_head(backend.model, target)


def _proof_samples(plan: Plan, shard_ids: list[int], num_samples: int) -> list[ProofSample]:
    """The first samples of the shards."""
    first = islice((sample for shard_id in shard_ids for sample in plan[shard_id]), num_samples)
    return [ProofSample.cut(s.sample_id, s.input_ids, s.loss_mask) for s in first]


def _result(folder: Folder, index: DumpIndex, started: float, *, did_nothing: bool) -> DumpResult:
    totals = index.totals
    kinds = count_kinds(folder.read(REJECTED_FILE))
    return DumpResult(
        url=folder.url,
        fingerprint=index.fingerprint,
        complete=True,
        num_samples=totals.num_samples,
        num_tokens=totals.num_tokens,
        num_rows=totals.num_rows,
        num_rejected=totals.num_rejected,
        num_truncated=kinds["truncated"],
        num_left_out=kinds["left_out"],
        num_bytes=totals.num_bytes,
        seconds=time.monotonic() - started,
        did_nothing=did_nothing,
    )
