"""A job's files: its state, its metrics, and the report of `specpipe run --status`.

The metrics have the names of the Token Factory API. Loss metrics per head are lk, kl and
cross_entropy, whatever loss is trained; beside them stand target_model_loss and draft_loss.
Sampling metrics per head are acceptance_rate, number_of_tokens and system_efficiency, of the
variation temperature=1.0.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from specpipe.schemas.base import Frozen

STATE_FILE = "job_state.json"
JOB_FILE = "job.json"
METRICS_FILE = "metrics.jsonl"
"""Lines of `JobMetrics`."""
REPORT_FILE = "report.html"
DUMP_FOLDER = "dump"
TRAIN_FOLDER = "train"

StageName = Literal["dump", "train", "export", "report"]
STAGES: tuple[StageName, ...] = ("dump", "train", "export", "report")

PER_HEAD = ("lk", "kl", "cross_entropy")
SAMPLING = ("acceptance_rate", "number_of_tokens", "system_efficiency")
VARIATION = "temperature_1.0"

JobStatus = Literal["queued", "running", "stopped", "failed", "succeeded"]
"""`stopped`: killed, stopped or out of time; the same command goes on."""


class JobError(Frozen):
    """Why a stage failed."""

    message: str
    kind: str
    """Name of the error in schemas/errors.py."""
    exit_code: int


class StageState(Frozen):
    """One stage of a job."""

    status: Literal["waiting", "running", "stopped", "failed", "done"] = "waiting"
    attempts: int = 0
    """Times that it was started."""
    started_at: float | None = None
    """Of the first attempt; seconds since 1970, as all times here."""
    finished_at: float | None = None
    result: dict[str, Any] | None = None
    """What the stage printed with --json."""


class JobState(Frozen):
    """job_state.json."""

    format_version: Literal[1] = 1
    status: JobStatus
    stages: dict[StageName, StageState]
    error: JobError | None = None
    artifact_sha256: dict[str, str] = Field(default_factory=dict)
    """Of the files in checkpoint/, once the job has succeeded."""
    settings_sha256: str
    """Of the job's body and of the further settings."""
    created_at: float
    updated_at: float


class StageProgress(Frozen):
    """How far the running stage is."""

    done: int
    total: int | None
    unit: str


class JobReport(Frozen):
    """What `specpipe run` and `specpipe run --status` report."""

    out: str
    status: JobStatus
    model: str
    stages: dict[StageName, StageState]
    running: StageName | None = None
    progress: StageProgress | None = None
    error: JobError | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    """The newest of each, under the API's names."""
    artifact: list[str] = Field(default_factory=list)
    """Files of the artifact, once the job has succeeded."""
    report: str | None = None
    created_at: float
    updated_at: float
    did_nothing: bool = False


class JobMetrics(Frozen):
    """A line of a job's metrics.jsonl."""

    step: int
    split: str
    """`train`: of the step's batch; `validation`: of what is held out."""
    metrics: dict[str, float]
    """Head k's end in /head_k, k from 1."""


def job_metrics(rows: Iterable[Mapping[str, Any]]) -> Iterator[JobMetrics]:
    """The rows of a training run's metrics.jsonl under the API's names, in their order."""
    for row in rows:
        found = row.get("eval")
        split = "train" if found is None else "validation"
        values = row if found is None else found
        yield JobMetrics(step=row["step"], split=split, metrics=dict(_named(values)))


def newest(lines: Iterable[JobMetrics]) -> dict[str, float]:
    """The last value of each metric, by split and name: validation/kl/head_1."""
    found: dict[str, float] = {}
    for line in lines:
        found |= {f"{line.split}/{name}": value for name, value in line.metrics.items()}
    return found


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in ("draft_loss", "target_model_loss"):
        if name in values:
            yield name, float(values[name])
    for name in PER_HEAD:
        yield from _heads(name, values.get(name, []))
    for name in SAMPLING:
        yield from _heads(f"{VARIATION}/{name}", values.get("temperature_1", {}).get(name, []))


def _heads(name: str, values: Iterable[float | None]) -> Iterator[tuple[str, float]]:
    for head, value in enumerate(values, start=1):
        if value is not None:
            yield f"{name}/head_{head}", float(value)
