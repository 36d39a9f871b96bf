"""The folder of a comparison: its plan, runs and step times."""

from pathlib import Path

from pydantic import ValidationError as PydanticError

from specpipe.pipeline.trials.folder import SearchFolder, damaged
from specpipe.schemas.records.choose import (
    ENGINE_FOLDER,
    PROBE_FOLDER,
    RESULT_FILE,
    RUNS_FOLDER,
    TIMES_FILE,
    ChoosePlan,
    ChooseResult,
    EngineTimes,
)
from specpipe.schemas.records.tune import PLAN_FILE
from specpipe.schemas.settings.choose import ChooseConfig
from specpipe.schemas.settings.train import ResolvedTrainConfig


class ChooseFolder(SearchFolder):
    command = "specpipe choose"

    def probe(self, drafter: str) -> Path:
        return self.path / PROBE_FOLDER / drafter

    def artifact(self, drafter: str) -> Path:
        """The folder of the export that the engine is timed with."""
        return self.path / ENGINE_FOLDER / drafter

    def run(self, drafter: str) -> Path:
        return self.path / RUNS_FOLDER / drafter

    def times(self, drafter: str | None) -> EngineTimes | None:
        """Of an engine that was timed; None is the one without a drafter."""
        return self.read(EngineTimes, _times(drafter))

    def write_times(self, drafter: str | None, times: EngineTimes) -> None:
        self.write(_times(drafter), times.to_json())

    def plan(self, config: ChooseConfig) -> ChoosePlan | None:
        """None where there is none yet; raises IdentityError where it is of other settings."""
        plan = self.read(ChoosePlan, PLAN_FILE)
        if plan is None:
            return None
        try:
            for recipe in plan.recipes.values():
                ResolvedTrainConfig.model_validate(recipe)
        except PydanticError as error:
            raise damaged(self.path / PLAN_FILE, error) from None
        self.check_same_settings(plan.config, plan.given, config)
        return plan

    def result(self) -> ChooseResult | None:
        return self.read(ChooseResult, RESULT_FILE)


def _times(drafter: str | None) -> str:
    return "/".join([ENGINE_FOLDER, *([] if drafter is None else [drafter]), TIMES_FILE])
