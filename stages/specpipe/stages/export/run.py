"""`specpipe export` as a function: from a checkpoint to an artifact that is proven to work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError
from torch import Tensor

from specpipe.schemas.artifact import CONFIG_FILE, MODEL_TENSORS_FILE, VALIDATION_FILE
from specpipe.schemas.checkpoint import STATE_FILE, TargetReference, TrainState
from specpipe.schemas.config import ExportConfig
from specpipe.schemas.errors import (
    ConfigError,
    IdentityError,
    IntegrityError,
    StoreError,
    ValidationError,
)
from specpipe.schemas.location import without_credentials
from specpipe.schemas.train_config import TrainConfig
from specpipe.schemas.versions import versions
from specpipe.stages.drafter.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from specpipe.stages.export import prompts, replay_check, serve, speculators, structure
from specpipe.stages.export.card import model_card
from specpipe.stages.export.evaluated import evaluation, run_settings, settings_for
from specpipe.stages.export.out_folder import OutFolder, local_path
from specpipe.stages.export.replay_check import ReplayFindings
from specpipe.stages.export.serve import Served, ServeFindings
from specpipe.stages.export.structure import StructureFindings
from specpipe.stages.export.validation import (
    Validation,
    artifact_sha256,
    still_stands,
)
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head import load_embedding
from specpipe.stages.target.identity import load_config, target_identity
from specpipe.stages.target.location import local_folder

Progress = Callable[[str], None]
"""Told what is going on, a line at a time."""

Findings = StructureFindings | ReplayFindings | ServeFindings

UNFINISHED = "this export has not finished; run it again"


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
    served: list[Served]
    """What vLLM measured beside what was replayed; empty without the level `serve`."""
    did_nothing: bool = False


def run(config: ExportConfig, *, progress: Progress | None = None) -> ExportResult:
    """Write the artifact and prove it; an export that stands does nothing.

    Raises ConfigError, IdentityError or IntegrityError where the inputs are wrong or OUT holds
    what no export wrote, StoreError where OUT cannot be written to, and ValidationError, after
    validation.json is written, where a level fails.
    """
    report = progress or (lambda _: None)
    out = OutFolder(config.out)
    out.check()
    path = resolve_checkpoint(
        local_path(config.checkpoint, "a checkpoint is read from a local disk; copy it there")
    )
    state = _state(path)
    if validation := still_stands(out.path, config, state):
        return _result(config, out, path, state, validation, did_nothing=True)
    checkpoint = load_checkpoint(path)
    settings = run_settings(path)
    dump = _dump(config, settings, checkpoint)
    target = _served(config, checkpoint.state)
    chosen: list[prompts.Prompt] = []
    if "serve" in config.validation:
        chosen = _prompts(config, dump, settings, checkpoint.state, target.name)
    # A validation speaks of the artifact beside it: until it does, it says so.
    out.write_validation(_validation(config, out.artifact, checkpoint, {}, [UNFINISHED]))
    out.write_artifact(
        *_artifact(checkpoint, dump, target, _draft_tokens(config, checkpoint.state))
    )
    validation = _validate(
        config, out.artifact, checkpoint, dump, settings, target.name, chosen, report
    )
    out.write_card(
        model_card(checkpoint.shape, validation, _draft_tokens(config, checkpoint.state))
    )
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


def _artifact(
    checkpoint: Checkpoint, dump: Dump, target: TargetReference, draft_tokens: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of the artifact."""
    return (
        speculators.artifact_config(checkpoint.shape, target, draft_tokens),
        speculators.artifact_tensors(
            checkpoint.shape,
            checkpoint.model,
            checkpoint.vocab.tensors(),
            lambda: load_embedding(dump.target_file),
        ),
    )


def _validate(
    config: ExportConfig,
    artifact: Path,
    checkpoint: Checkpoint,
    dump: Dump,
    settings: TrainConfig | None,
    target: str,
    chosen: list[prompts.Prompt],
    report: Progress,
) -> Validation:
    """Every level that is asked for, the cheap ones first, up to the first that fails."""
    state = checkpoint.state
    identity = dump.identity.target
    findings: dict[str, Findings] = {}
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
            findings[level] = serve.check(
                artifact, target, chosen, config, report, revision=state.target.revision
            )
        problems += [f"{level}: {problem}" for problem in findings[level].problems]
    return _validation(config, artifact, checkpoint, findings, problems)


def _validation(
    config: ExportConfig,
    artifact: Path,
    checkpoint: Checkpoint,
    findings: dict[str, Findings],
    problems: list[str],
) -> Validation:
    state = checkpoint.state
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
            "target": _served(config, state),
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
        source = prompts.from_file(
            config.serve_data,
            local_folder(target, state.target.revision),
            found.vocab_size,
            trust_remote_code=config.trust_remote_code,
        )
    else:
        settings = settings_for(dump, state, settings)
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
    recorded = replay_check.recorded_metrics(path, state)
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
        draft_tokens=_draft_tokens(config, state),
        draft_tokens_because=(
            "given"
            if config.speculative_tokens is not None
            else "the number of draft steps that were trained; step times were not measured"
        ),
        levels=levels,
        served=validation.serve.runs if validation.serve is not None else [],
        did_nothing=did_nothing,
    )


def _draft_tokens(config: ExportConfig, state: TrainState) -> int:
    return config.speculative_tokens or state.num_heads


def _state(path: Path) -> TrainState:
    try:
        return TrainState.model_validate_json((path / STATE_FILE).read_bytes())
    except (PydanticError, FileNotFoundError) as error:
        raise IntegrityError(f"{path / STATE_FILE} is damaged or missing: {error}") from None
