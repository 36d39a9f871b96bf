"""The folder of a search: its lock, its plan, the runs of its trials."""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError as PydanticError

from specpipe.pipeline.tune.clock import Clock
from specpipe.schemas.base import Record
from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.location import local_path
from specpipe.schemas.records.checkpoint import CHECKPOINTS_FOLDER, CONFIG_FILE
from specpipe.schemas.records.tune import (
    CLOCK_FILE,
    PLAN_FILE,
    PROBE_FOLDER,
    RESULT_FILE,
    SCORE_FILE,
    TRIALS_FOLDER,
    TrialScore,
    TunePlan,
    TuneResult,
)
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.schemas.settings.tune import TuneConfig
from specpipe.stages.runs.folder import check_same
from specpipe.stages.storage.store.local_disk import write_file
from specpipe.stages.storage.store.lock import locked
from specpipe.stages.untrusted.files import read_file

R = TypeVar("R", bound=Record)


class TuneFolder:
    """One search's folder on a local disk."""

    def __init__(self, out: str) -> None:
        self.path = local_path(out, "a search is written to a local disk").expanduser()

    def locked(self) -> AbstractContextManager[object]:
        """Hold the folder; raises ConfigError where another search has it, or another output."""
        if (self.path / CONFIG_FILE).exists():
            raise ConfigError(f"{self.path} holds a training run; give the search another --out")
        return locked(self.path, "another specpipe tune works in this folder")

    def clock(self) -> Clock:
        return Clock(self.path / CLOCK_FILE)

    @property
    def probe(self) -> Path:
        return self.path / PROBE_FOLDER

    def run(self, trial: int, rung: int) -> Path:
        """The folder of a trial's run with the steps of a rung, both counted from 0."""
        return self.path / TRIALS_FOLDER / f"{trial:03}-rung-{rung + 1}"

    def plan(self, config: TuneConfig) -> TunePlan | None:
        """The plan that the search goes on with; None where there is none yet.

        Raises IdentityError where the search that is here began with other settings.
        """
        path = self.path / PLAN_FILE
        plan = _read(TunePlan, path)
        if plan is None:
            return None
        try:
            for settings in plan.trials:
                ResolvedTrainConfig.model_validate(plan.recipe | settings)
        except PydanticError as error:
            raise _damaged(path, error) from None
        now = config.without_credentials().flat("json")
        # A setting that is newer than the plan counts where it is given.
        known = plan.config.keys() | config.flat_fields_set
        check_same(f"{self.path} holds a search", plan.config, now, known)
        return plan

    def score(self, trial: int, rung: int) -> TrialScore | None:
        """Of a run that is complete, or has diverged."""
        return _read(TrialScore, self.run(trial, rung) / SCORE_FILE)

    def write_score(self, trial: int, rung: int, score: TrialScore) -> None:
        write_file(self.run(trial, rung) / SCORE_FILE, score.to_json())

    def result(self) -> TuneResult | None:
        """Of a search that is complete."""
        return _read(TuneResult, self.path / RESULT_FILE)

    def write(self, name: str, data: bytes) -> None:
        write_file(self.path / name, data)

    def drop_checkpoints(self, trial: int, rung: int) -> None:
        """Free the disk of what a complete run holds besides its figures."""
        shutil.rmtree(self.run(trial, rung) / CHECKPOINTS_FOLDER, ignore_errors=True)


def _read(record: type[R], path: Path) -> R | None:
    """A record of the search, None where there is no file; raises IntegrityError for a damaged
    one."""
    if not path.exists():
        return None
    try:
        return record.model_validate_json(read_file(path))
    except PydanticError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: PydanticError) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged ({error.errors()[0]['msg']}); give another --out, or remove it:"
        " trials that are complete are not trained twice"
    )
