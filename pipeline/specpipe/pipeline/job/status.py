"""The status of a job, read from its folder alone, while the job runs and afterwards."""

from specpipe.pipeline.job.folder import JobFolder
from specpipe.schemas.location import without_credentials
from specpipe.schemas.records.checkpoint import STATE_FILE, TrainState
from specpipe.schemas.records.job import (
    REPORT_FILE,
    JobReport,
    JobState,
    StageName,
    StageProgress,
    job_metrics,
    newest,
)
from specpipe.stages.runs.metric_rows import metric_rows
from specpipe.stages.runs.pointers import latest_checkpoint
from specpipe.stages.untrusted.files import read_file


def job_report(folder: JobFolder, *, did_nothing: bool = False) -> JobReport:
    """Raises ConfigError where there is no job."""
    state = folder.state()
    in_use = folder.is_in_use
    running = _running(state) if in_use else None
    status = state.status
    if status in ("queued", "running"):
        # A killed process wrote nothing of its end.
        status = "running" if in_use else "stopped"
    report = folder.path / REPORT_FILE
    return JobReport(
        out=str(folder.path),
        status=status,
        model=without_credentials(folder.job().model),
        stages=state.stages,
        running=running,
        progress=None if running is None else _progress(folder, running),
        error=state.error,
        metrics=newest(job_metrics(metric_rows(folder.train))),
        artifact=[str(path) for path in folder.artifact] if status == "succeeded" else [],
        report=str(report) if report.exists() else None,
        created_at=state.created_at,
        updated_at=state.updated_at,
        did_nothing=did_nothing,
    )


def running_stage(folder: JobFolder) -> StageName | None:
    """None where nothing runs. Raises ConfigError where there is no job."""
    state = folder.state()
    return _running(state) if folder.is_in_use else None


def _running(state: JobState) -> StageName | None:
    return next((name for name, s in state.stages.items() if s.status == "running"), None)


def _progress(folder: JobFolder, stage: StageName) -> StageProgress | None:
    if stage == "dump":
        planned = len(list(folder.dump.glob("plan/*.parquet")))
        done = len(list(folder.dump.glob("shards/*.manifest.json")))
        return StageProgress(done=done, total=planned or None, unit="shards")
    if stage == "train":
        steps = [row["step"] for row in metric_rows(folder.train)]
        return StageProgress(done=max(steps, default=0), total=_total_steps(folder), unit="steps")
    return None


def _total_steps(folder: JobFolder) -> int | None:
    path = latest_checkpoint(folder.train)
    try:
        text = read_file(path / STATE_FILE) if path else b""
        return TrainState.model_validate_json(text).total_steps
    except (OSError, ValueError):
        return None
