"""The stages of a job, one after the other, each by its own command.

A stage that is done does nothing when it runs again, so that whatever was killed is run again.
"""

import signal
import time
from collections.abc import Callable

from specpipe.pipeline.job.folder import JobFolder, update_stage
from specpipe.pipeline.job.settings import JobSettings
from specpipe.pipeline.job.stage_process import StageOutcome, StageProcess, is_unfinished
from specpipe.schemas.errors import SpecpipeError, UnfinishedError
from specpipe.schemas.records.artifact import ARTIFACT_FOLDER
from specpipe.schemas.records.job import (
    REPORT_FILE,
    STAGES,
    JobError,
    JobState,
    StageName,
    job_metrics,
)
from specpipe.stages.process.stop import stop_question
from specpipe.stages.runs.metric_rows import metric_rows
from specpipe.stages.validate.record import artifact_sha256


class StageFailedError(SpecpipeError):
    """A stage of a job failed, and has said why."""

    already_reported = True

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.exit_code = error.exit_code  # type: ignore[misc]
        self._of_stage = error.kind

    @property
    def kind(self) -> str:
        """The stage's own; one that could not start has said none."""
        return self._of_stage or SpecpipeError.__name__


class JobRunner:
    """Runs what is left of a job. SIGTERM and the time limit stop it where it can go on."""

    def __init__(
        self,
        folder: JobFolder,
        settings: JobSettings,
        *,
        processes: int,
        time_limit: float | None,
        note: Callable[[str], None],
    ) -> None:
        self._folder, self._settings = folder, settings
        self._processes, self._time_limit, self._note = processes, time_limit, note
        self._current: StageProcess | None = None
        self._stopped: str | None = None

    def run(self) -> bool:
        """Whether there was anything to do. Raises StageFailedError, or UnfinishedError where it
        was stopped."""
        with self._folder.locked() as lock:
            state = self._folder.begin(self._settings.job, self._settings.sha256)
            if state.status == "succeeded" and self._stands(state):
                return False
            signals = (signal.SIGTERM, signal.SIGINT)
            with stop_question(self._time_limit, act=self._stop, signals=signals):
                self._run_stages(state, lock)
        return True

    def _run_stages(self, state: JobState, lock: int) -> None:
        state = state.model_copy(update={"status": "running", "error": None})
        for name in STAGES:
            state = self._run_stage(state, name, lock)
        self._write_metrics()
        self._folder.write_state(
            state.model_copy(
                update={"status": "succeeded", "artifact_sha256": self._artifact_sha256()}
            )
        )

    def _run_stage(self, state: JobState, name: StageName, lock: int) -> JobState:
        stage = state.stages[name]
        state = update_stage(
            state,
            name,
            status="running",
            attempts=stage.attempts + 1,
            started_at=stage.started_at or time.time(),
            finished_at=None,
        )
        state = self._folder.write_state(state)
        self._note(f"[{STAGES.index(name) + 1}/{len(STAGES)}] {name}")
        self._current = self._process(name, lock)
        outcome = StageOutcome(-signal.SIGTERM, {}) if self._stopped else self._current.run()
        if name == "train":
            self._write_metrics()
        if outcome.exit_code == 0:
            changes = {"status": "done", "finished_at": time.time(), "result": outcome.result}
            return self._folder.write_state(update_stage(state, name, **changes))
        raise self._ended(state, name, outcome)

    def _ended(self, state: JobState, name: StageName, outcome: StageOutcome) -> SpecpipeError:
        """What to raise for a stage that has not done its work; the state says it, too."""
        message = outcome.result.get("error") or f"{name} ended with {outcome.exit_code}"
        status = "stopped" if self._stopped or is_unfinished(outcome) else "failed"
        error = JobError(
            message=self._stopped or str(message),
            kind=str(outcome.result.get("kind", "")),
            exit_code=UnfinishedError.exit_code if status == "stopped" else outcome.exit_code,
        )
        state = update_stage(state, name, status=status, finished_at=time.time())
        self._folder.write_state(state.model_copy(update={"status": status, "error": error}))
        if status == "stopped":
            return UnfinishedError(f"{name}: {error.message}; run the same command to go on")
        return StageFailedError(error)

    def _process(self, name: StageName, lock: int) -> StageProcess:
        if name == "report":
            folder = self._folder
            return StageProcess(
                ["report", "--run", str(folder.train), "--artifact", str(folder.path),
                 "--out", str(folder.path / REPORT_FILE)],
                None, lock, 1,
            )  # fmt: skip
        processes = self._processes if name == "train" else 1
        return StageProcess([name], self._settings.config(name), lock, processes)

    def _stop(self, why: str) -> None:
        self._stopped = why
        if self._current is not None:
            self._current.stop()

    def _write_metrics(self) -> None:
        rows = job_metrics(metric_rows(self._folder.train))
        self._folder.write_metrics([line.model_dump_json() for line in rows])

    def _stands(self, state: JobState) -> bool:
        return self._artifact_sha256() == state.artifact_sha256

    def _artifact_sha256(self) -> dict[str, str]:
        return artifact_sha256(self._folder.path / ARTIFACT_FOLDER)
