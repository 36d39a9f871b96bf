"""The state of a job: job_state.json, and the report of `specpipe run --status`."""

from typing import Any, Literal

from pydantic import Field

from specpipe.schemas.base import Frozen

STATE_FILE = "job_state.json"
JOB_FILE = "job.json"
METRICS_FILE = "metrics.jsonl"
"""Metrics under the API's names, see schemas/records/job_metrics.py."""
REPORT_FILE = "report.html"
DUMP_FOLDER = "dump"
TRAIN_FOLDER = "train"

StageName = Literal["dump", "train", "export", "report"]
STAGES: tuple[StageName, ...] = ("dump", "train", "export", "report")

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
