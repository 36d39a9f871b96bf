"""`specpipe export` as a function: from a checkpoint to an artifact that is proven to work."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError

from specpipe.schemas.artifact import (
    ARTIFACT_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    MODEL_TENSORS_FILE,
    VALIDATION_FILE,
)
from specpipe.schemas.checkpoint import STATE_FILE, TrainState
from specpipe.schemas.config import ExportConfig, TrainConfig
from specpipe.schemas.errors import (
    ConfigError,
    IdentityError,
    IntegrityError,
    StoreError,
    ValidationError,
)
from specpipe.schemas.versions import versions
from specpipe.stages.drafter.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from specpipe.stages.export import prompts, replay_check, serve, speculators, structure
from specpipe.stages.export.card import model_card
from specpipe.stages.export.evaluated import evaluation, run_settings
from specpipe.stages.export.replay_check import ReplayFindings
from specpipe.stages.export.serve import ServeFindings
from specpipe.stages.export.structure import StructureFindings
from specpipe.stages.export.validation import (
    Validation,
    artifact_sha256,
    still_stands,
)
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.identity import load_config, target_identity
from specpipe.stages.target.location import local_folder

Progress = Callable[[str], None]
"""Told what is going on, a line at a time."""


class ExportResult(BaseModel):
    """What `specpipe export` reports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    draft_tokens: int
    """Recommended number of draft tokens."""
    draft_tokens_because: str
    levels: dict[str, bool]
    """Levels of validation that ran, and whether they passed."""
    did_nothing: bool = False


def run(config: ExportConfig, *, progress: Progress | None = None) -> ExportResult:
    """Write the artifact and prove it; an export that stands does nothing.

    Raises ConfigError, IdentityError or IntegrityError where the inputs are wrong, and
    ValidationError, after validation.json is written, where a level fails.
    """
    report = progress or (lambda _: None)
    out = _local(config.out)
    path = resolve_checkpoint(config.checkpoint)
    state = _state(path)
    if validation := still_stands(out, config, state):
        return _result(config, out, path, state, validation, did_nothing=True)
    checkpoint = load_checkpoint(path)
    settings = run_settings(path)
    dump = _dump(config, settings, checkpoint)
    target = config.target or checkpoint.state.target.name
    try:
        out.mkdir(parents=True, exist_ok=True)
        # A validation speaks of the artifact beside it, so it goes first and comes last.
        (out / VALIDATION_FILE).unlink(missing_ok=True)
        _write_artifact(out, checkpoint, target, _draft_tokens(config, checkpoint.state))
        validation = _validate(config, out, checkpoint, dump, settings, target, report)
        card = model_card(checkpoint.shape, validation, _draft_tokens(config, checkpoint.state))
        (out / CARD_FILE).write_text(card, encoding="utf-8")
        _replace(out / VALIDATION_FILE, validation.model_dump_json(indent=2).encode())
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot write to {out}: {error}") from error
    if not validation.passed:
        raise ValidationError(
            f"{out / ARTIFACT_FOLDER} fails its validation: {'; '.join(validation.problems)}."
            f" {out / VALIDATION_FILE} holds the findings; do not serve it"
        )
    return _result(config, out, path, checkpoint.state, validation)


def _write_artifact(out: Path, checkpoint: Checkpoint, target: str, draft_tokens: int) -> None:
    """Write OUT/checkpoint whole: in a folder beside it, which then takes its name."""
    reference = checkpoint.state.target.model_copy(update={"name": target})
    final, temporary = out / ARTIFACT_FOLDER, out / f".{ARTIFACT_FOLDER}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    speculators.write(
        temporary,
        speculators.artifact_config(checkpoint.shape, reference, draft_tokens),
        speculators.artifact_tensors(
            checkpoint.shape, checkpoint.model, checkpoint.vocab.tensors()
        ),
    )
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)


def _validate(
    config: ExportConfig,
    out: Path,
    checkpoint: Checkpoint,
    dump: Dump,
    settings: TrainConfig | None,
    target: str,
    report: Progress,
) -> Validation:
    """Every level that is asked for, the cheap ones first, up to the first that fails."""
    artifact, state = out / ARTIFACT_FOLDER, checkpoint.state
    identity = dump.identity.target
    findings: dict[str, StructureFindings | ReplayFindings | ServeFindings] = {}
    problems: list[str] = []
    for level in ("structure", "replay", "serve"):
        if level not in config.validation or problems:
            continue
        report(f"validation: {level}")
        if level == "structure":
            facts = structure.TargetFacts(
                architecture=state.target.architecture,
                hidden_size=identity.hidden_size,
                vocab_size=identity.vocab_size,
                num_layers=identity.num_layers,
            )
            findings[level] = structure.check(artifact, facts, checkpoint.shape)
        elif level == "replay":
            findings[level] = replay_check.check(
                artifact, checkpoint, dump, settings, config.replay_samples
            )
        else:
            chosen = _prompts(config, dump, settings, state, target)
            findings[level] = serve.check(
                artifact, target, chosen, config, report, revision=state.target.revision
            )
        problems += [f"{level}: {problem}" for problem in findings[level].problems]
    return Validation.model_validate(
        {
            "passed": not problems,
            "problems": problems,
            **{level: found.model_dump() for level, found in findings.items()},
            "config": config.without_credentials(),
            "checkpoint": str(checkpoint.path),
            "step": state.step,
            "checkpoint_sha256": state.files_sha256,
            "artifact_sha256": artifact_sha256(artifact),
            "target": state.target,
            "versions": versions(),
        }
    )


def _prompts(
    config: ExportConfig, dump: Dump, settings: TrainConfig | None, state: TrainState, target: str
) -> list[prompts.Prompt]:
    """Prompts for `serve`, after a check that `target` is the one that the drafter is for."""
    found = target_identity(
        target, state.target.revision, trust_remote_code=config.trust_remote_code
    )
    if found.weights_sha256 != state.target.weights_sha256:
        raise IdentityError(
            f"{target} is not the target that the drafter was trained for ({state.target.name}):"
            " its weights differ; give the right --target"
        )
    if config.serve_data is not None:
        source = prompts.from_file(config.serve_data, target, found.vocab_size)
    else:
        if dump.header.fingerprint != state.eval_dump_fingerprint:
            settings = None
        source = prompts.from_dump(dump, evaluation(dump, settings)[1])
    model = load_config(
        local_folder(target, state.target.revision), trust_remote_code=config.trust_remote_code
    ).get_text_config(decoder=True)
    drafts = max(config.serve_speculative_tokens)
    longest = model.max_position_embeddings - config.serve_max_tokens - drafts - 1
    return prompts.choose(source, config.serve_prompts, longest)


def _dump(config: ExportConfig, settings: TrainConfig | None, checkpoint: Checkpoint) -> Dump:
    url = config.dump
    if url is None and settings is not None:
        url = settings.eval_dump or settings.dump
    if url is None:
        raise ConfigError(
            f"{checkpoint.path} lies outside of its run directory, so its dump is not known;"
            " give --dump"
        )
    dump = Dump.open(url)
    if dump.identity.target.weights_sha256 != checkpoint.state.target.weights_sha256:
        raise IdentityError(
            f"{dump.folder.url} is a dump of {dump.identity.target.name}, but {checkpoint.path}"
            f" was trained for {checkpoint.state.target.name} with other weights; give the right"
            " --dump"
        )
    return dump


def _result(
    config: ExportConfig,
    out: Path,
    path: Path,
    state: TrainState,
    validation: Validation,
    *,
    did_nothing: bool = False,
) -> ExportResult:
    artifact = out / ARTIFACT_FOLDER
    if validation.replay is not None:
        tau = {name: curve.tau for name, curve in validation.replay.artifact.items()}
    else:
        tau = {}
    recorded = replay_check.recorded_metrics(path, state)
    levels = {
        level: found.passed
        for level in ("structure", "replay", "serve")
        if (found := getattr(validation, level)) is not None
    }
    return ExportResult(
        out=str(out),
        artifact=str(artifact),
        validation=str(out / VALIDATION_FILE),
        checkpoint=str(path),
        step=state.step,
        num_bytes=sum(
            (artifact / name).stat().st_size for name in (MODEL_TENSORS_FILE, CONFIG_FILE)
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
        draft_tokens=_draft_tokens(config, state),
        draft_tokens_because=(
            "given"
            if config.speculative_tokens is not None
            else "the number of draft steps that were trained; step times were not measured"
        ),
        levels=levels,
        did_nothing=did_nothing,
    )


def _draft_tokens(config: ExportConfig, state: TrainState) -> int:
    return config.speculative_tokens or state.num_heads


def _state(path: Path) -> TrainState:
    try:
        return TrainState.model_validate_json((path / STATE_FILE).read_bytes())
    except (PydanticError, FileNotFoundError) as error:
        raise IntegrityError(f"{path / STATE_FILE} is damaged or missing: {error}") from None


def _local(location: str) -> Path:
    if "://" in location and not location.startswith("file://"):
        raise ConfigError(f"{location}: an artifact is written to a local disk; copy it from there")
    return Path(location.removeprefix("file://"))


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
