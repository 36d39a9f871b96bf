"""`specpipe export` as a function: from a checkpoint to an artifact that is proven to work."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError as PydanticError
from torch import Tensor

from specpipe.schemas.base import Frozen
from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.errors import (
    ConfigError,
    IdentityError,
    IntegrityError,
    StoreError,
    ValidationError,
)
from specpipe.schemas.location import local_path, without_credentials
from specpipe.schemas.records.artifact import (
    CONFIG_FILE,
    LM_HEAD,
    MODEL_TENSORS_FILE,
    VALIDATION_FILE,
)
from specpipe.schemas.records.checkpoint import (
    STATE_FILE,
    TargetReference,
    TrainState,
)
from specpipe.schemas.records.metrics import TauDifference
from specpipe.schemas.records.served import Served
from specpipe.schemas.records.validation import Validation
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.schemas.speedup import Recommendation, Schedule, Speedup
from specpipe.schemas.versions import versions
from specpipe.stages.drafters.artifact_format import Drafter, Format, check_draft_tokens
from specpipe.stages.drafters.lm_head import without_lm_head
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.export.card import model_card
from specpipe.stages.export.draft_tokens import LevelFindings, recommendation
from specpipe.stages.export.out_folder import OutFolder
from specpipe.stages.runs.checkpoint import Checkpoint, load_checkpoint, stored_shape
from specpipe.stages.runs.held_out import evaluation, run_settings, settings_for
from specpipe.stages.runs.metric_rows import recorded_metrics
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.files.location import TargetSource
from specpipe.stages.target.head.target_tensors import StoredTarget
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.validate import structure
from specpipe.stages.validate.record import artifact_sha256, still_stands
from specpipe.stages.validate.replay import run as replay_check
from specpipe.stages.validate.serve import run as serve
from specpipe.stages.validate.serve.engine_support import check_served
from specpipe.stages.validate.serve.prompts import Prompt, from_dump, serve_prompts
from specpipe.stages.validate.target_check import check_target
from specpipe.stages.validate.target_facts import target_facts

Progress = Callable[[str], None]
"""Told what is going on, a line at a time."""

UNFINISHED = "this export has not finished; run it again"


class ExportResult(Frozen):
    """What `specpipe export` reports."""

    out: str
    artifact: str
    """Folder that a serving engine loads."""
    validation: str
    checkpoint: str
    step: int
    num_bytes: int
    """Of the artifact."""
    draft_loss_first: float | None
    draft_loss_last: float | None
    """Training loss at the first step and at the checkpoint's."""
    acceptance_rate: dict[str, list[float]]
    """Per head, by variant, as the run evaluated this checkpoint; empty if it did not."""
    tau: dict[str, list[float]]
    """Replayed tokens per round for 1..K draft tokens, by variant (see EvalMetrics)."""
    rounding: dict[str, TauDifference]
    """What rounding the weights did to tau, by variant; empty without the level `replay`."""
    draft_tokens: int
    """Recommended number of draft tokens."""
    draft_tokens_because: str
    speedups: list[Speedup]
    """Expected, and measured, by batch size; empty where no cost is known."""
    draft_schedule: Schedule
    """Of draft tokens by batch size; empty where one number is best for all."""
    levels: dict[str, bool]
    """Levels of validation that ran, and whether they passed."""
    served: list[Served]
    """What vLLM measured beside what was replayed; empty without the level `serve`."""
    did_nothing: bool = False


def run(config: ExportConfig, *, progress: Progress | None = None) -> ExportResult:
    """Write the artifact and prove it; an export that stands does nothing.

    Raises ConfigError, IdentityError or IntegrityError where the inputs are wrong, OUT holds what
    no export wrote or another one writes there, StoreError where OUT cannot be written to, and
    ValidationError, after validation.json is written, where a level fails.
    """
    report = progress or (lambda _: None)
    out = OutFolder(config.out)
    out.check()
    path = resolve_checkpoint(
        local_path(config.checkpoint, "a checkpoint is read from a local disk; copy it there")
    )
    state = _state(path)
    shape = stored_shape(path)
    formats = drafter_kind(shape).formats
    config = config.model_copy(update={"format": config.format or next(iter(formats))})
    if validation := still_stands(out.path, config, state):
        return _result(config, out, path, state, validation, did_nothing=True)
    checkpoint = load_checkpoint(path)
    format = _format(config, shape)
    draft_tokens = config.speculative_tokens or checkpoint.state.num_heads
    check_draft_tokens(shape, draft_tokens)
    settings = run_settings(path)
    dump = _dump(config, settings, checkpoint)
    target = _served(config, checkpoint.state)
    served = check_served(
        target.architecture,
        drafter_kind(checkpoint.shape).serving,
        config.validation,
        report,
        required=config.require_servable,
    )
    chosen: list[Prompt] = []
    to_serve = "serve" in config.validation
    if to_serve or config.target is not None:
        check_target(target.name, checkpoint.state.target, config, report, to_serve=to_serve)
    if to_serve:
        chosen = _prompts(config, dump, settings, checkpoint.state, target.name)
    tensors = _tensors(config, checkpoint, dump)
    with out.locked():
        # A validation speaks of the artifact beside it: until it does, it says so.
        out.write_validation(
            _validation(config, out.artifact, checkpoint, LevelFindings(), [UNFINISHED])
        )
        drafter = Drafter(
            shape=checkpoint.shape,
            target=target.name,
            target_architecture=target.architecture,
            speculative_tokens=draft_tokens,
            has_lm_head=LM_HEAD in tensors,
        )
        out.write_artifact(format, format.config(drafter), tensors)
        findings, problems = _validate(
            config, out.artifact, _Trained(checkpoint, settings, dump), target.name, chosen, report
        )
        advice = recommendation(
            config, checkpoint.state.num_heads, findings, drafter_kind(checkpoint.shape).serving
        )
        if advice.draft_tokens != draft_tokens:
            drafter = replace(drafter, speculative_tokens=advice.draft_tokens)
            out.write_artifact(format, format.config(drafter), tensors)
        validation = _validation(config, out.artifact, checkpoint, findings, problems, advice)
        out.write_card(model_card(checkpoint.shape, validation, advice, served))
        out.write_validation(validation)
    if not validation.passed:
        raise ValidationError(
            f"{out.artifact} fails its validation: {'; '.join(validation.problems)}."
            f" {out.path / VALIDATION_FILE} holds the findings; do not serve it"
        )
    return _result(config, out, path, checkpoint.state, validation)


def _served(config: ExportConfig, state: TrainState) -> TargetReference:
    """The target, under the name that it is served by."""
    name = without_credentials(config.target or state.target.name)
    return state.target.model_copy(update={"name": name})


def _format(config: ExportConfig, shape: DrafterShape) -> Format[Any]:
    formats, name = drafter_kind(shape).formats, config.format or ""
    if name not in formats:
        raise ConfigError(
            f"format {name} is not one of a drafter {shape.architecture}; give --format"
            f" {' or '.join(formats)}"
        )
    if cannot := formats[name].inexpressible(shape):
        raise ConfigError(
            f"format {config.format} cannot hold this drafter: {'; '.join(cannot)}; give --format"
            " speculators"
        )
    return formats[name]


def _tensors(config: ExportConfig, checkpoint: Checkpoint, dump: Dump) -> dict[str, Tensor]:
    """Tensors of the artifact."""
    target = StoredTarget(dump.target_file)
    tensors = drafter_kind(checkpoint.shape).artifact_tensors(
        checkpoint.shape,
        checkpoint.model,
        checkpoint.vocab.tensors(),
        target,
        with_embedding=config.with_embedding,
    )
    if config.with_lm_head:
        return tensors
    return without_lm_head(checkpoint.shape, tensors, target)


@dataclass(frozen=True, slots=True)
class _Trained:
    """A checkpoint with its run's settings and dump, which the artifact is replayed by."""

    checkpoint: Checkpoint
    settings: ResolvedTrainConfig | None
    dump: Dump


def _validate(
    config: ExportConfig,
    artifact: Path,
    trained: _Trained,
    target: str,
    chosen: list[Prompt],
    report: Progress,
) -> tuple[LevelFindings, list[str]]:
    """Every level that is asked for, the cheap ones first, up to the first that fails; and what is
    wrong."""
    checkpoint, dump = trained.checkpoint, trained.dump
    findings = LevelFindings()
    problems: list[str] = []
    for level in ("structure", "replay", "serve"):
        if level not in config.validation or problems:
            continue
        report(f"validation: {level}")
        if level == "structure":
            proof = structure.check(artifact, target_facts(dump), checkpoint.shape)
            findings = replace(findings, structure=proof)
        elif level == "replay":
            replayed = replay_check.check(
                artifact, checkpoint, dump, trained.settings, config.replay_samples
            )
            findings = replace(findings, replay=replayed)
        else:
            source = TargetSource(target, checkpoint.state.target.revision)
            served = serve.check(artifact, source, chosen, config, report)
            findings = replace(findings, serve=served)
        problems += [f"{level}: {one}" for one in findings.by_level()[level].problems]
    return findings, problems


def _validation(
    config: ExportConfig,
    artifact: Path,
    checkpoint: Checkpoint,
    findings: LevelFindings,
    problems: list[str],
    advice: Recommendation | None = None,
) -> Validation:
    state = checkpoint.state
    return Validation.model_validate(
        {
            "passed": not problems,
            "problems": problems,
            **{level: found.model_dump() for level, found in findings.by_level().items()},
            "recommendation": None if advice is None else advice.model_dump(),
            "config": config.settings(),
            "checkpoint": str(checkpoint.path),
            "step": state.step,
            "checkpoint_sha256": state.files_sha256,
            "artifact_sha256": artifact_sha256(artifact),
            "target": _served(config, state),
            "versions": versions(),
        }
    )


def _prompts(
    config: ExportConfig,
    dump: Dump,
    settings: ResolvedTrainConfig | None,
    state: TrainState,
    target: str,
) -> list[Prompt]:
    settings = settings_for(dump, state, settings)
    return serve_prompts(
        config, target, state.target, lambda: from_dump(dump, evaluation(dump, settings)[1])
    )


def _dump(
    config: ExportConfig, settings: ResolvedTrainConfig | None, checkpoint: Checkpoint
) -> Dump:
    url = config.dump
    if url is None and settings is not None:
        url = settings.eval_dump or settings.dump
    if url is None:
        raise ConfigError(
            f"{checkpoint.path} lies outside of its run directory, so its dump is not known;"
            " give --dump"
        )
    try:
        dump = Dump.open(url)
    except (ConfigError, StoreError) as error:
        if config.dump is not None:
            raise
        raise type(error)(
            f"{error}; that is where {checkpoint.path} was trained or evaluated from: if the dump"
            " lies elsewhere now, or its URL needs credentials, give --dump"
        ) from None
    if dump.identity.target.weights_sha256 != checkpoint.state.target.weights_sha256:
        raise IdentityError(
            f"{dump.folder.url} is a dump of {dump.identity.target.name}, but {checkpoint.path}"
            f" was trained for {checkpoint.state.target.name} with other weights; give the right"
            " --dump"
        )
    return dump


def _result(
    config: ExportConfig,
    out: OutFolder,
    path: Path,
    state: TrainState,
    validation: Validation,
    *,
    did_nothing: bool = False,
) -> ExportResult:
    if validation.replay is not None:
        tau = {name: curve.tau for name, curve in validation.replay.artifact.items()}
    else:
        tau = {}
    recorded = recorded_metrics(path, state)
    advice = validation.recommendation
    assert advice is not None  # of every validation that passed
    levels = {
        level: found.passed
        for level in ("structure", "replay", "serve")
        if (found := getattr(validation, level)) is not None
    }
    return ExportResult(
        out=str(out.path),
        artifact=str(out.artifact),
        validation=str(out.path / VALIDATION_FILE),
        checkpoint=str(path),
        step=state.step,
        num_bytes=sum(
            (out.artifact / name).stat().st_size for name in (MODEL_TENSORS_FILE, CONFIG_FILE)
        ),
        draft_loss_first=state.draft_loss_first,
        draft_loss_last=state.draft_loss_last,
        acceptance_rate={}
        if recorded is None
        else {
            "temperature_1": recorded.temperature_1.acceptance_rate,
            "greedy": recorded.greedy.acceptance_rate,
        },
        tau=tau,
        rounding={} if validation.replay is None else validation.replay.rounding,
        draft_tokens=advice.draft_tokens,
        draft_tokens_because=advice.because,
        speedups=advice.speedups,
        draft_schedule=advice.schedule,
        levels=levels,
        served=validation.serve.runs if validation.serve is not None else [],
        did_nothing=did_nothing,
    )


def _state(path: Path) -> TrainState:
    try:
        return TrainState.model_validate_json(read_file(path / STATE_FILE))
    except PydanticError as error:
        raise IntegrityError(f"{path / STATE_FILE} is damaged: {error}") from None
