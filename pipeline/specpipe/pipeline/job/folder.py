"""The folder of a job: its body, its state, and the outputs of its stages."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from specpipe.schemas.errors import ConfigError, IdentityError, IntegrityError
from specpipe.schemas.location import without_credentials
from specpipe.schemas.records.artifact import (
    ARTIFACT_FOLDER,
    CARD_FILE,
    MODEL_TENSORS_FILE,
    VALIDATION_FILE,
)
from specpipe.schemas.records.artifact import CONFIG_FILE as ARTIFACT_CONFIG
from specpipe.schemas.records.checkpoint import PROVENANCE_FILE
from specpipe.schemas.records.job import (
    DUMP_FOLDER,
    JOB_FILE,
    METRICS_FILE,
    REPORT_FILE,
    STAGES,
    STATE_FILE,
    TRAIN_FOLDER,
    JobState,
    StageName,
    StageState,
)
from specpipe.schemas.settings.job import SpecDraftJob
from specpipe.stages.storage.store.local_disk import write_file
from specpipe.stages.storage.store.lock import LOCK_FILE, is_locked, locked
from specpipe.stages.untrusted.files import read_file

_PATIENCE_SECONDS = 5.0
"""Processes of a run that was killed need a moment to end."""
_LEFT_AFTER_TRAINING = {
    METRICS_FILE,
    REPORT_FILE,
    ARTIFACT_FOLDER,
    CARD_FILE,
    VALIDATION_FILE,
    PROVENANCE_FILE,
}


class JobFolder:
    """One job's folder on a local disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def dump(self) -> Path:
        return self.path / DUMP_FOLDER

    @property
    def train(self) -> Path:
        return self.path / TRAIN_FOLDER

    @property
    def artifact(self) -> list[Path]:
        """The two files that a serving engine loads."""
        return [self.path / ARTIFACT_FOLDER / n for n in (MODEL_TENSORS_FILE, ARTIFACT_CONFIG)]

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder; yields the descriptor by which stages hold it too."""
        taken = "another `specpipe run` works in this folder; see `specpipe run --status`"
        with locked(self.path, taken, patience=_PATIENCE_SECONDS) as descriptor:
            yield descriptor

    @property
    def is_in_use(self) -> bool:
        return self.path.is_dir() and is_locked(self.path)

    def begin(self, job: SpecDraftJob, settings_sha256: str) -> JobState:
        """The state to go on from; raises IdentityError where the folder is another job's."""
        if (self.path / STATE_FILE).exists():
            state = self.state()
            if state.settings_sha256 != settings_sha256:
                raise IdentityError(
                    f"{self.path} holds another job, or this one with other settings"
                    f" ({self.path / JOB_FILE}); give another --out, or the same job to go on"
                )
            return state
        self._check_others(job)
        if not (self.path / JOB_FILE).exists():
            self._write(JOB_FILE, _as_written(job))
        now = time.time()
        state = JobState(
            status="queued",
            stages={name: StageState() for name in STAGES},
            settings_sha256=settings_sha256,
            created_at=now,
            updated_at=now,
        )
        self.write_state(state)
        return state

    def _check_others(self, job: SpecDraftJob) -> None:
        """That a folder without a state is new, or this job's, whose state was lost."""
        # Locks, and what a write that was killed leaves, are hidden files.
        names = {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
        left = {JOB_FILE}
        if JOB_FILE in names:
            left |= {DUMP_FOLDER, TRAIN_FOLDER}
            if _as_written(self.job()) != _as_written(job):
                raise IdentityError(
                    f"{self.path} holds another job ({self.path / JOB_FILE}); give another --out"
                )
        if (self.train / LOCK_FILE).exists():
            left |= _LEFT_AFTER_TRAINING
        if foreign := names - left:
            raise ConfigError(
                f"{self.path} holds {min(foreign)}, which no job wrote; give a new --out, or move"
                " that away"
            )

    def state(self) -> JobState:
        """Raises ConfigError where there is no job, IntegrityError for a damaged state."""
        path = self.path / STATE_FILE
        try:
            return JobState.model_validate_json(read_file(path, ConfigError))
        except ConfigError:
            raise ConfigError(f"there is no job in {self.path}: it has no {STATE_FILE}") from None
        except ValidationError as error:
            raise IntegrityError(
                f"{path} cannot be read ({error}); remove it, and run the job again: finished"
                " stages are not done twice"
            ) from None

    def job(self) -> SpecDraftJob:
        path = self.path / JOB_FILE
        try:
            return SpecDraftJob.model_validate_json(read_file(path))
        except ValidationError as error:
            raise IntegrityError(f"{path} cannot be read: {error}") from None

    def write_state(self, state: JobState) -> JobState:
        """Write job_state.json, with the time."""
        state = state.model_copy(update={"updated_at": time.time()})
        self._write(STATE_FILE, state.model_dump_json(indent=2))
        return state

    def write_metrics(self, lines: list[str]) -> None:
        self._write(METRICS_FILE, "".join(f"{line}\n" for line in lines))

    def _write(self, name: str, text: str) -> None:
        write_file(self.path / name, text.encode())


def _as_written(job: SpecDraftJob) -> str:
    return without_credentials(job.model_dump_json(indent=2, exclude_none=True))


def update_stage(state: JobState, name: StageName, **changes: Any) -> JobState:
    """The state with another state of one stage."""
    stage = state.stages[name].model_copy(update=changes)
    return state.model_copy(update={"stages": state.stages | {name: stage}})
