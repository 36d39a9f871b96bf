"""Everything that a report is made from: the run folder, the export, the dumps.

What is not there is not an error: `missing` says it, and the page does. What is there and damaged
is one, and so is what was asked for and is not there.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic import ValidationError as PydanticError

from specpipe.schemas.errors import (
    ConfigError,
    IdentityError,
    IntegrityError,
    StoreError,
    UnfinishedError,
)
from specpipe.schemas.location import local_path, without_credentials
from specpipe.schemas.records.artifact import VALIDATION_FILE
from specpipe.schemas.records.checkpoint import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    PROVENANCE_FILE,
    RESULT_FILE,
    TrainResult,
)
from specpipe.schemas.records.learning_curve import LEARNING_CURVE_FILE, LearningCurve
from specpipe.schemas.records.metrics import EvalMetrics
from specpipe.schemas.records.validation import Validation
from specpipe.schemas.settings.stages import ReportConfig
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.runs.checkpoint import Checkpoint, load_checkpoint
from specpipe.stages.runs.metric_rows import metric_rows, recorded_metrics
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.json_text import parse_object

Record = TypeVar("Record", bound=BaseModel)
Provenance = dict[str, Any]


@dataclass(slots=True)
class Sources:
    run: Path
    settings: ResolvedTrainConfig
    rows: list[dict[str, Any]]
    """Of metrics.jsonl."""
    result: TrainResult | None
    checkpoint: Checkpoint | None
    """The one that was exported; without an export, the run's best, or else its latest."""
    metrics: EvalMetrics | None
    """The run's evaluation of the checkpoint."""
    validation: Validation | None
    provenance: dict[str, Provenance]
    """By stage."""
    dump: Dump | None
    """The one that the samples are read from."""
    training_dump: Dump | None
    learning_curve: LearningCurve | None
    missing: dict[str, str] = field(default_factory=dict)
    """By part, why it is not there: checkpoint, evaluation, artifact, dump, training_dump."""

    @property
    def samples_drafts(self) -> bool:
        """At temperature 1, in engines; else drafts are greedy there too."""
        return self.settings.drafter.samples_drafts


def read_sources(config: ReportConfig) -> Sources:
    """Raises ConfigError where `run`, or an artifact or dump that was named, is none; IdentityError
    where the artifact is another run's; IntegrityError where a file is damaged."""
    run = local_path(config.run, "a run is read from a local disk; copy it there")
    settings = _record(run / CONFIG_FILE, ResolvedTrainConfig)
    if settings is None:
        raise ConfigError(f"{run} is no run directory of `specpipe train`: it has no {CONFIG_FILE}")
    validation = provenance = None
    missing: dict[str, str] = {}
    if config.artifact is None:
        missing["artifact"] = "No export was given (--artifact), so nothing here is validated."
    else:
        artifact = local_path(config.artifact, "an artifact is read from a local disk")
        validation = _record(artifact / VALIDATION_FILE, Validation)
        provenance = _json(artifact / PROVENANCE_FILE)
        if validation is None:
            raise ConfigError(f"{artifact} is no folder of an export: it has no {VALIDATION_FILE}")
    checkpoint = _checkpoint(run, validation, missing)
    rows = list(metric_rows(run))
    metrics = None if checkpoint is None else recorded_metrics(checkpoint.path, checkpoint.state)
    if metrics is None:
        evaluations = [row["eval"] for row in rows if "eval" in row]
        metrics = EvalMetrics.model_validate(evaluations[-1]) if evaluations else None
    if metrics is None:
        missing["evaluation"] = "The run has not evaluated yet: metrics.jsonl has no evaluation."
    evaluated_on = settings.eval_dump or settings.dump
    return Sources(
        run=run,
        settings=settings,
        rows=rows,
        result=_record(run / RESULT_FILE, TrainResult),
        checkpoint=checkpoint,
        metrics=metrics,
        validation=validation,
        provenance={
            name: found
            for name, found in (("train", _json(run / PROVENANCE_FILE)), ("export", provenance))
            if found is not None
        },
        dump=Dump.open(config.dump)
        if config.dump is not None
        else _open(evaluated_on, "dump", missing),
        training_dump=_open(settings.dump, "training_dump", missing),
        learning_curve=_record(run / LEARNING_CURVE_FILE, LearningCurve),
        missing=missing,
    )


def _checkpoint(
    run: Path, validation: Validation | None, missing: dict[str, str]
) -> Checkpoint | None:
    if validation is not None:
        path = run / CHECKPOINTS_FOLDER / Path(validation.checkpoint).name
        if path.is_dir():
            checkpoint = load_checkpoint(path)
            if checkpoint.state.files_sha256 != validation.checkpoint_sha256:
                raise IdentityError(
                    f"the artifact was exported from {validation.checkpoint}, which is not"
                    f" {path}: give the --artifact of this run, or export again"
                )
            return checkpoint
        missing["checkpoint"] = f"The exported checkpoint {path} is not there any more."
        return None
    try:
        return load_checkpoint(resolve_checkpoint(run))
    except ConfigError:
        missing["checkpoint"] = "The run has no checkpoint yet."
        return None


def _open(url: str, part: str, missing: dict[str, str]) -> Dump | None:
    """A dump that the run's settings name, and that may have gone since."""
    try:
        return Dump.open(url)
    except (ConfigError, UnfinishedError, StoreError) as error:
        missing[part] = f"The dump cannot be read now: {without_credentials(str(error))}"
        return None


def _record(path: Path, kind: type[Record]) -> Record | None:
    return _parsed(path, kind.model_validate_json)


def _json(path: Path) -> Provenance | None:
    found: Provenance | None = _parsed(path, lambda data: parse_object(data, str(path)))
    return found


Parsed = TypeVar("Parsed")


def _parsed(path: Path, parse: Callable[[bytes], Parsed]) -> Parsed | None:
    """None where there is no file."""
    if not os.path.exists(path):
        return None
    data = read_file(path)
    try:
        return parse(data)
    except (PydanticError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged, or another version's: {error}") from None
