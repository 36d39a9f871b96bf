"""`specpipe plan`: what a dump holds and takes, before anything is spent. Nothing is written."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from specpipe.schemas.errors import ConfigError, UnfinishedError
from specpipe.schemas.records.dump import (
    DUMP_FILE,
    HEAD_FILE,
    INDEX_FILE,
    TARGET_FOLDER,
    DumpIdentity,
)
from specpipe.schemas.records.sample import is_held_out
from specpipe.schemas.settings.recipe import Facts, Recipe, resolve
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump_plan.claim import read_claim
from specpipe.stages.dump_plan.prepared import plan_of
from specpipe.stages.dump_plan.shards import Plan, read_listed_plan, read_plan
from specpipe.stages.dump_plan.stamp import last_stamp
from specpipe.stages.plan.dump_size import DumpSize, TargetFiles, dump_sizes
from specpipe.stages.plan.training_memory import TrainerMemory, trainer_memory
from specpipe.stages.storage.records import parse_index
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.files.fetched import fetched
from specpipe.stages.target.files.identity import load_config
from specpipe.stages.target.files.location import CONFIG_FILE, local_folder, tokenizer_files
from specpipe.stages.target.files.quantised import missing_package
from specpipe.stages.target.head.head_model import head_numbers
from specpipe.stages.target.head.last_layer import last_layer_bytes
from specpipe.stages.target.head.mtp_layer import mtp_bytes
from specpipe.stages.target.version_warning import VLLM, warn_untested
from specpipe.stages.text.rejected import (
    Rejection,
    Rejections,
    from_jsonl,
    read_listed_rejections,
    to_jsonl,
)

_log = logging.getLogger(__name__)

TOPK_SHOWN = (16, 64, 256)

_HEAD_OVERHEAD = 1024
"""head.json, and the header of head.safetensors, take about so many bytes."""

_TRAINING = TrainConfig(dump="-", out="-")
"""Nothing is set: the trainer's settings follow from the data."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Samples whose number of tokens is in [first, last]."""

    first: int
    last: int
    num_samples: int


@dataclass(frozen=True, slots=True)
class Estimate:
    identity: DumpIdentity
    is_generated: bool
    """The text is yet to be written: tokens, rows and sizes are the most that it may be."""
    num_shards: int
    num_samples: int
    num_repeated: int
    """Samples that stand in the input again and are dumped once."""
    num_tokens: int
    num_supervised: int
    """Supervised tokens that something precedes: the verifier rows."""
    lengths: tuple[Lengths, ...]
    """By powers of two, from the shortest to the longest."""
    num_rejected: int
    num_truncated: int
    num_left_out: int
    num_partly_masked: int
    sizes: tuple[DumpSize, ...]
    """Of each logits mode in each format."""
    recipe: Recipe
    """Of a trainer with default settings; its number of steps is about."""
    trainer: TrainerMemory

    @property
    def chosen(self) -> DumpSize:
        """The size of the dump as it is configured."""
        wanted = (self.identity.logits, self.identity.shard_format)
        return next(size for size in self.sizes if (size.logits, size.shard_format) == wanted)

    @property
    def read_ahead(self) -> int:
        """Most bytes of shards that a process of the trainer holds, in the host's memory."""
        return min(_TRAINING.prefetch_mib * 2**20, self.chosen.num_bytes)


def estimate(config: DumpConfig) -> Estimate:
    """What a dump of this configuration would hold and take.

    Of the target, config and tokenizer are read. Raises InputError and ConfigError as the dump
    would.
    """
    warn_untested("transformers", *(VLLM if config.backend != "hf" else ()))
    folder = local_folder(
        config.target, config.revision, with_weights=False, with_code=config.trust_remote_code
    )
    if config.backend != "vllm":
        _warn_of_missing_package(config, folder)
    rejections = Rejections(config.max_rejected)
    plan, identity = plan_of(config, folder, rejections, to_run=False)
    target = _target_to_come(folder, identity, trust_remote_code=config.trust_remote_code)
    recipe = _recipe(identity, plan)
    memory = trainer_memory(
        folder, identity, recipe.config, trust_remote_code=config.trust_remote_code
    )
    return _estimate(identity, plan, rejections.of_input, target, (recipe, memory))


def _warn_of_missing_package(config: DumpConfig, folder: Path) -> None:
    """No more than a warning: the dump may run elsewhere, or in vLLM."""
    lacks = missing_package(load_config(folder, trust_remote_code=config.trust_remote_code))
    if lacks is not None:
        _log.warning("transformers cannot load target %s here: %s", config.target, lacks)


def estimate_dump(url: str) -> Estimate:
    """What the dump at a URL holds and takes, however much of it is there.

    Raises ConfigError where there is none, UnfinishedError where its plan is not written yet,
    IntegrityError where that is damaged.
    """
    folder = Folder.open(url)
    identity = read_claim(folder)
    if identity is None:
        raise ConfigError(f"there is no dump at {folder.url}: it has no {DUMP_FILE}")
    plan, rejections = _planned(folder, identity)
    recipe = _recipe(identity, plan)
    sizes = folder.sizes(TARGET_FOLDER)
    if f"{TARGET_FOLDER}/{HEAD_FILE}" not in sizes:
        # No worker has begun: all there is to know is where the target was.
        source = local_folder(identity.target.name, identity.target.revision, with_weights=False)
        target = _target_to_come(source, identity, trust_remote_code=False)
        memory = trainer_memory(source, identity, recipe.config, trust_remote_code=False)
    else:
        target = TargetFiles(len(sizes), sum(sizes.values()))
        with fetched(folder.child(TARGET_FOLDER).read, [CONFIG_FILE]) as local:
            memory = trainer_memory(local, identity, recipe.config, trust_remote_code=False)
    return _estimate(identity, plan, rejections, target, (recipe, memory))


def _planned(folder: Folder, identity: DumpIdentity) -> tuple[Plan, list[Rejection]]:
    """By the index of a complete dump, which other writers' dumps have too, else by the stamp."""
    if folder.exists(INDEX_FILE):
        where = folder.where(INDEX_FILE)
        index = parse_index(folder.read(INDEX_FILE), where, identity.fingerprint)
        return read_listed_plan(folder, index), read_listed_rejections(folder, index)
    stamp = last_stamp(folder)
    if stamp is None:
        raise UnfinishedError(
            f"the plan of the dump at {folder.url} is not written yet: run `specpipe dump` again, "
            "or `specpipe plan` with the flags of the dump"
        )
    plan = read_plan(folder, stamp.num_shards, stamp.plan_sha256)
    return plan, from_jsonl(stamp.rejected)


def _estimate(
    identity: DumpIdentity,
    plan: Plan,
    rejections: Sequence[Rejection],
    target: TargetFiles,
    training: tuple[Recipe, TrainerMemory],
) -> Estimate:
    samples = [sample for shard in plan for sample in shard]
    kinds = Counter(rejection.kind for rejection in rejections)
    return Estimate(
        identity=identity,
        is_generated=identity.text.is_planned,
        num_shards=len(plan),
        num_samples=len(samples),
        num_repeated=sum(sample.multiplicity - 1 for sample in samples),
        num_tokens=sum(sample.size for sample in samples),
        num_supervised=sum(sample.most_rows for sample in samples),
        lengths=length_histogram([sample.size for sample in samples]),
        num_rejected=kinds["refused"],
        num_truncated=kinds["truncated"],
        num_left_out=kinds["left_out"],
        num_partly_masked=kinds["partly_masked"],
        sizes=dump_sizes(_variants(identity), plan, target, len(to_jsonl(rejections))),
        recipe=training[0],
        trainer=training[1],
    )


def _recipe(identity: DumpIdentity, plan: Plan) -> Recipe:
    """What a trainer with default settings does on the samples that it does not hold out."""
    samples = [
        sample
        for shard in plan
        for sample in shard
        if (sample.loss_mask[2:].any() or sample.max_new_tokens)
        and not is_held_out(sample.prompt_id, _TRAINING.held_out_fraction)
    ]
    facts = Facts(
        hidden_size=identity.target.hidden_size,
        num_samples=max(1, len(samples)),
        num_tokens=max(1, sum(sample.size for sample in samples)),
        num_supervised=sum(sample.most_rows for sample in samples),
        has_final_states=identity.logits == "final",
    )
    return resolve(_TRAINING, facts)


def length_histogram(lengths: Sequence[int]) -> tuple[Lengths, ...]:
    """Lengths from one power of two to below the next, without gaps; `lengths` are positive."""
    counted = Counter(length.bit_length() for length in lengths)
    return tuple(
        Lengths(1 << (bits - 1), (1 << bits) - 1, counted[bits])
        for bits in range(min(counted), max(counted) + 1)
    )


def _variants(identity: DumpIdentity) -> list[DumpIdentity]:
    """The same dump in each logits mode and format, the chosen mode among them."""
    vocab_size = identity.target.vocab_size
    kept = {topk for topk in TOPK_SHOWN if topk < vocab_size} | {identity.topk or 0} - {0}
    modes = ["final", *(f"topk:{topk}" for topk in sorted(kept)), "full"]
    return [
        identity.model_copy(update={"logits": mode, "shard_format": shard_format})
        for mode in modes
        for shard_format in ("zarr", "parquet")
    ]


def _target_to_come(
    folder: Path, identity: DumpIdentity, *, trust_remote_code: bool
) -> TargetFiles:
    """What the dump's workers will write to `target/`."""
    copied = [folder / CONFIG_FILE, *tokenizer_files(folder)]
    itemsize = getattr(torch, identity.compute_dtype).itemsize
    head = head_numbers(folder, trust_remote_code=trust_remote_code) * itemsize + _HEAD_OVERHEAD
    layers = [mtp_bytes(folder), last_layer_bytes(folder, itemsize)]
    num_files = len(copied) + 2 + sum(count for count, _ in layers)
    num_bytes = sum(path.stat().st_size for path in copied) + head + sum(size for _, size in layers)
    return TargetFiles(num_files, num_bytes)
