"""The folder of a search: its plan, the runs of its trials."""

from pathlib import Path

from pydantic import ValidationError as PydanticError

from specpipe.pipeline.trials.folder import SearchFolder, damaged
from specpipe.pipeline.trials.trial import TrialRun
from specpipe.schemas.records.tune import (
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
from specpipe.stages.runs.folder import RunFolder


class TuneFolder(SearchFolder):
    command = "specpipe tune"

    @property
    def probe(self) -> Path:
        return self.path / PROBE_FOLDER

    def run(self, trial: int, rung: int) -> Path:
        """The folder of a trial's run with the steps of a rung, both counted from 0."""
        return self.path / _run(trial, rung)

    def plan(self, config: TuneConfig) -> TunePlan | None:
        """The plan that the search goes on with; None where there is none yet.

        Raises IdentityError where the search that is here began with other settings.
        """
        plan = self.read(TunePlan, PLAN_FILE)
        if plan is None:
            return None
        try:
            run = TrialRun(ResolvedTrainConfig.model_validate(plan.recipe), 1, plan.pass_steps)
            for rung in plan.rungs:
                for settings in plan.trials:
                    run.config(settings, rung.steps, self.path, rung.short_run)
        except PydanticError as error:
            raise damaged(self.path / PLAN_FILE, error) from None
        self.check_same_settings(plan.config, plan.given, config)
        return plan

    def score(self, trial: int, rung: int) -> TrialScore | None:
        """Of a run that is complete, or has diverged."""
        return self.read(TrialScore, f"{_run(trial, rung)}/{SCORE_FILE}")

    def write_score(self, trial: int, rung: int, score: TrialScore) -> None:
        self.write(f"{_run(trial, rung)}/{SCORE_FILE}", score.to_json())

    def result(self) -> TuneResult | None:
        """Of a search that is complete."""
        return self.read(TuneResult, RESULT_FILE)

    def drop_checkpoints(self, trial: int, rung: int) -> None:
        """Free the disk of what a complete run holds besides its figures."""
        RunFolder(str(self.run(trial, rung))).forget_weights()


def _run(trial: int, rung: int) -> str:
    return f"{TRIALS_FOLDER}/{trial:03}-rung-{rung + 1}"
