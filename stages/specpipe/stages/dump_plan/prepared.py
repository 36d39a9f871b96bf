"""The identity and plan of a dump, claimed and written before the target runs.

A later run, or another worker of the same dump, reads the plan from the store instead of reading
and tokenising the input again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specpipe.schemas.drafters.registry import DEFAULT, kind_of
from specpipe.schemas.errors import ConfigError, IntegrityError, StoreError
from specpipe.schemas.records.dump import DumpIdentity, TextOrigin, chunk_tokens
from specpipe.schemas.records.sample import Sample
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump_plan.claim import claim, claimed_identity, read_claim
from specpipe.stages.dump_plan.shards import Plan, input_sha256, make_plan, read_plan, write_plan
from specpipe.stages.dump_plan.stamp import read_stamp, write_stamp
from specpipe.stages.process.activity import doing
from specpipe.stages.process.device import choose_device
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.files.identity import load_config, target_identity
from specpipe.stages.target.files.location import local_folder
from specpipe.stages.target.hf.backend import compute_dtype
from specpipe.stages.target.open_backend import choose_backend, engine_identity
from specpipe.stages.target.version_warning import VLLM, warn_untested
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.prompts import read_prompts
from specpipe.stages.text.rejected import Rejection, Rejections, from_jsonl
from specpipe.stages.text.samples import read_samples


@dataclass(frozen=True, slots=True)
class Prepared:
    """A dump whose folder is claimed and whose plan is written."""

    folder: Folder
    stamp: str
    """By which another process recognises this plan in the store."""
    target_folder: Path
    identity: DumpIdentity
    plan: Plan
    rejections: tuple[Rejection, ...]
    """Inputs that were refused or truncated."""


def prepare(config: DumpConfig, folder: Folder, stamp: str) -> Prepared:
    """Claim `folder` for the dump and write its plan; `stamp` is that of config and input.

    Raises IdentityError where the folder belongs to another dump.
    """
    warn_untested("transformers")
    target_folder = local_folder(config.target, config.revision, with_code=config.trust_remote_code)
    prepared = _from_store(folder, target_folder, stamp)
    if prepared is not None:
        if prepared.identity.backend == "vllm":
            warn_untested(*VLLM)
        return prepared
    rejections = Rejections(config.max_rejected)
    plan, identity = plan_of(config, target_folder, rejections, read_claim(folder))
    # Before anything is written: a folder of another dump stays as it is.
    claimed_identity(folder, identity)
    identity = claim(folder, identity)
    write_plan(folder, plan)
    write_stamp(folder, stamp, plan, rejections.of_input)
    return Prepared(folder, stamp, target_folder, identity, plan, tuple(rejections.of_input))


def join(config: DumpConfig, stamp: str) -> Prepared:
    """What another process has prepared under this stamp; the input is not read again.

    Raises StoreError where this process does not see it.
    """
    folder = Folder.open(config.out)
    prepared = _from_store(
        folder,
        local_folder(config.target, config.revision, with_code=config.trust_remote_code),
        stamp,
    )
    if prepared is None:
        raise StoreError(
            f"{folder.url} does not hold the plan that was just written there: every worker must "
            "see the same --out, and nobody may change it"
        )
    return prepared


def plan_of(
    config: DumpConfig,
    target_folder: Path,
    rejections: Rejections,
    claimed: DumpIdentity | None = None,
    *,
    to_run: bool = True,
) -> tuple[Plan, DumpIdentity]:
    """Plan and identity from the input and the target's files; nothing is written.

    `claimed` is the identity of the dump that is continued, if there is one: it settles what the
    configuration leaves open. Without `to_run`, weights, engine and device need not be there, and
    the identity says nothing of the weights.
    """
    if to_run:
        choose_device(config.device)
    trust = config.trust_remote_code
    model = load_config(target_folder, trust_remote_code=trust).get_text_config(decoder=True)
    layers = _layers(config, model.num_hidden_layers, claimed)
    _check_logits(config.logits, model.vocab_size)
    context_length = context_length_of(
        config.context_length,
        getattr(model, "max_position_embeddings", None),
        config.context_limit,
    )
    template = ChatTemplate(
        target_folder,
        loss_mask=config.loss_mask,
        settings=config.chat_template_kwargs,
        trust_remote_code=trust,
    )
    doing("reading and tokenising the input")
    samples: Sequence[Sample] = (
        read_samples(config.data, template, model.vocab_size, context_length, rejections)
        if config.generate is None
        else read_prompts(
            config.data, template, model.vocab_size, context_length, config.generate, rejections
        )
    )
    backend = _backend(config, claimed, to_run=to_run)
    doing("hashing the target's files")
    identity = DumpIdentity(
        target=target_identity(
            config.target, config.revision, trust_remote_code=trust, with_weights=to_run
        ),
        layers=layers,
        compute_dtype=str(compute_dtype(config.dtype, model, target_folder)).removeprefix("torch."),
        backend=backend,
        engine=engine_identity(config, backend),
        shard_format=config.format,
        logits=config.logits,
        states_dtype=config.states,
        compression=config.compression,
        chunk_tokens=config.chunk_tokens or chunk_tokens(model.hidden_size),
        shard_tokens=config.shard_tokens,
        context_length=context_length,
        input_sha256=input_sha256(samples),
        text=_text(config),
        chat_template_kwargs=config.chat_template_kwargs,
    )
    return make_plan(samples, config.shard_tokens), identity


def _from_store(folder: Folder, target_folder: Path, stamp: str) -> Prepared | None:
    """What an earlier run or another worker has prepared from the same configuration and input."""
    stamped, identity = read_stamp(folder, stamp), read_claim(folder)
    if stamped is None or identity is None:
        return None
    try:
        plan = read_plan(folder, stamped.num_shards, stamped.plan_sha256)
    except IntegrityError:
        return None  # What is missing or damaged is made from the input again.
    rejections = tuple(from_jsonl(stamped.rejected))
    return Prepared(folder, stamp, target_folder, identity, plan, rejections)


def _text(config: DumpConfig) -> TextOrigin:
    if config.generate is not None:
        settings = config.generate
        return TextOrigin(
            kind="generated",
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            seed=settings.seed,
            samples_per_prompt=settings.samples_per_prompt,
        )
    if config.text_temperature is not None:
        return TextOrigin(kind="generated", temperature=config.text_temperature, stated=True)
    return TextOrigin()


def _backend(
    config: DumpConfig, claimed: DumpIdentity | None, *, to_run: bool
) -> Literal["hf", "vllm"]:
    if claimed and config.backend == "auto":
        return claimed.backend
    if to_run:
        return choose_backend(config)
    return "hf" if config.backend == "auto" else config.backend


def _layers(config: DumpConfig, num_layers: int, claimed: DumpIdentity | None) -> tuple[int, ...]:
    """The given ones, or all that the drafters read that the dump is for; a dump that was begun
    with the default layers of before goes on with them."""
    try:
        layers = config.layers
        if layers is None:
            wanted = [kind_of(name).settings for name in config.for_drafters or (DEFAULT,)]
            # Of logits mode `final`, rows of the last layer's output are there anyway.
            has_final = config.logits == "final"
            wanted = [one for one in wanted if not (has_final and one.reads_starts_alone)]
            layers = _union(one.default_layers(num_layers) for one in wanted) or (num_layers,)
            before = _union(one.undeclared_layers(num_layers) for one in wanted) or (num_layers,)
            if claimed is not None and claimed.layers == before:
                layers = before
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if list(layers) != sorted({k for k in layers if 1 <= k <= num_layers}) or not layers:
        raise ConfigError(
            f"layers {', '.join(map(str, layers))}: the ids must ascend within 1..{num_layers} "
            "(id k is what enters decoder layer k)"
        )
    return layers


def _union(layers: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted(set().union(*layers)))


def _check_logits(logits: str, vocab_size: int) -> None:
    kept = logits.removeprefix("topk:")
    if kept != logits and int(kept) > vocab_size:
        raise ConfigError(
            f"--logits {logits}: the target's vocabulary has {vocab_size} tokens; give topk:N with"
            " fewer, or full"
        )


def context_length_of(given: int | None, of_target: int | None, limit: int | None = None) -> int:
    """Tokens to which samples are cut: as given, else the target's maximum, up to a limit.

    Raises ConfigError.
    """
    if of_target is not None and of_target < 2:
        raise ConfigError(f"the target's config has a maximum length of {of_target}")
    if given is None and limit is not None:
        return min(limit, of_target or limit)
    if given is None and of_target is None:
        raise ConfigError("the target's config has no maximum length: give --context-length")
    if given is not None and of_target is not None and given > of_target:
        raise ConfigError(f"context_length {given} is beyond the target's maximum of {of_target}")
    return given or of_target or 0
