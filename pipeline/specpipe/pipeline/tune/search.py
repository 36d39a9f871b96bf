"""`specpipe tune` as a function: from a dump to settings for training, resumable at any moment.

All that is random is decided by the seed, and all that depends on time by the plan, so that a
search that is killed goes on to the same result. Only a search whose time runs out before its plan
is done ends where it then is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from specpipe.pipeline.trials.clock import Clock
from specpipe.pipeline.trials.folder import begun_with
from specpipe.pipeline.trials.trial import TrialRun
from specpipe.pipeline.tune.folder import TuneFolder
from specpipe.pipeline.tune.halving import total_steps
from specpipe.pipeline.tune.judge import held_back
from specpipe.pipeline.tune.material import Material
from specpipe.pipeline.tune.page import tune_page
from specpipe.pipeline.tune.planning import check_same_dumps, made_plan
from specpipe.pipeline.tune.score import train_trial
from specpipe.pipeline.tune.settings_file import kept_settings, settings_file
from specpipe.pipeline.tune.space import Axis, search_axes
from specpipe.pipeline.tune.standings import Standings
from specpipe.schemas.errors import ConfigError, DivergedError, UnfinishedError
from specpipe.schemas.records.tune import (
    PAGE_FILE,
    PLAN_FILE,
    RESULT_FILE,
    SETTINGS_FILE,
    HeldBack,
    Settings,
    TrialScore,
    TunePlan,
    TuneResult,
)
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.schemas.settings.tune import TuneConfig

TuneProgress = Callable[[int, int, str, dict[str, float]], None]
"""Told how many of how many steps are done, what is trained, and figures of its latest step."""
Say = Callable[[str], None]


def tune(config: TuneConfig, *, progress: TuneProgress, say: Say) -> TuneResult:
    """Search, or go on; a complete search does nothing.

    Raises what training raises but for DivergedError, ConfigError where the budget is too small,
    IdentityError where the folder is another search's.
    """
    folder = TuneFolder(config.out)
    with folder.locked():
        plan, result = folder.plan(config), folder.result()
        if plan is not None and result is not None:
            recipe = ResolvedTrainConfig.model_validate(plan.recipe)
            folder.check_still_of(config, recipe, plan)
            if folder.lacks(SETTINGS_FILE, PAGE_FILE):
                write_shown(folder, result, recipe)
            return result.model_copy(update={"did_nothing": True})
        with folder.clock() as clock:
            material = Material.open(config)
            if plan is None:
                say(f"recipe: {material.whole.in_words()}")

                def probed(step: int, total: int, figures: dict[str, float]) -> None:
                    progress(step, total, "measuring a step", figures)
                    clock.tick()

                plan = made_plan(config, material, folder, clock, probed)
                folder.write(PLAN_FILE, plan.to_json())
            check_same_dumps(plan, material)
            material = replace(material, recipe=begun_with(plan.recipe, material.recipe))
            return Search(config, folder, clock, material, plan, progress, say).run()


def write_shown(folder: TuneFolder, result: TuneResult, recipe: ResolvedTrainConfig) -> None:
    """Write what follows from the result: train.yaml and the page."""
    folder.write(SETTINGS_FILE, settings_file(result))
    folder.write(PAGE_FILE, tune_page(result, recipe, folder.path))


@dataclass(slots=True)
class Search:
    """Runs what is left of a plan."""

    config: TuneConfig
    folder: TuneFolder
    clock: Clock
    material: Material
    plan: TunePlan
    progress: TuneProgress
    say: Say
    _done: int = 0
    """Steps, of the recipe's size."""
    _standings: Standings = field(init=False)

    def __post_init__(self) -> None:
        self._standings = Standings(list(self.plan.trials))

    def run(self) -> TuneResult:
        is_cut_short = not self._train_all()
        rungs = self._standings.rungs
        if len(rungs[-1]) < 2 and len(rungs) > 1:
            # No trial was trained as long as the recipe: there is nothing to compare it with.
            rungs.pop()
        last = len(rungs) - 1
        best = self._standings.best(last)
        if rungs[last][best].tau == 0:
            raise DivergedError(
                f"training diverged in every trial; see {self.folder.run(0, last)}, and give a"
                " lower --learning-rate and another --out"
            )
        found = None
        if best != 0 and rungs[last][0].tau > 0:
            runs = self.folder.run(best, last), self.folder.run(0, last)
            found = held_back(self.material, *runs)
        result = self._result(is_cut_short, best, found)
        write_shown(self.folder, result, self.material.recipe)
        self.folder.write(RESULT_FILE, result.to_json())
        return result

    def _train_all(self) -> bool:
        """Whether the plan was done; else the time was over."""
        axes = self._axes()
        for at, rung in enumerate(self.plan.rungs):
            trials = self._standings.begin(rung, axes)
            for trial in trials:
                score = self._score(trial, at)
                if score is None:
                    return False
                self._standings.rungs[at][trial] = score
                self._drop_checkpoints(at)
                self._done += rung.steps
            # A rung may have fewer trials than were planned, where some diverged.
            self._done += rung.steps * (rung.num_trials - len(trials))
        return True

    def _axes(self) -> list[Axis]:
        """Those that the plan's trials lie on, for the middles that it has."""
        if not any(rung.has_middle for rung in self.plan.rungs):
            return []
        axes = search_axes(self.material.recipe, set(self.plan.given))
        return [axis for axis in axes if self.plan.trials[0].keys() >= set(axis.names)]

    def _score(self, trial: int, at: int) -> TrialScore | None:
        """None where the time is over before the run is complete."""
        score = self.folder.score(trial, at)
        if score is not None:
            return score
        budget = self.config.budget_seconds
        left = None if budget is None else budget - self.clock.seconds
        try:
            if left is None or left > 0:
                score = self._train(trial, at, left)
        except UnfinishedError:
            if budget is None or self.clock.seconds < budget:
                raise
        finally:
            self.clock.save()
        if score is None and trial == 0 and at == 0:
            raise ConfigError(
                f"the budget of {self.config.budget} is over before the first trial was complete;"
                " give a larger --budget and another --out"
            )
        return score

    def _train(self, trial: int, at: int, time_limit: float | None) -> TrialScore:
        rung, rungs = self.plan.rungs[at], self.plan.rungs
        what = f"rung {at + 1} of {len(rungs)}, trial {trial}"
        config = self._trial_run.config(
            self._standings.trials[trial], rung.steps, self.folder.run(trial, at), rung.short_run
        )

        def show_step(step: int, total: int, figures: dict[str, float]) -> None:
            done = self._done + rung.steps * step // total
            self.progress(done, total_steps(rungs), what, figures)
            self.clock.tick()

        config = config.model_copy(update={"time_limit": time_limit})
        score = train_trial(config, show_step, is_greedy=self.material.evaluated_on.text.is_greedy)
        self.folder.write_score(trial, at, score)
        came_to = f"tau {score.tau:.3f}" if score.tau else "diverged"
        self.say(f"{what}: {came_to} after {score.steps:,} steps")
        return score

    def _drop_checkpoints(self, at: int) -> None:
        """Keep those of the recipe and of the best trial, which are compared in the end, of the
        longest runs that can be compared."""
        scores = self._standings.rungs[at]
        for trial in scores.keys() - {0, self._standings.best(at)}:
            self.folder.drop_checkpoints(trial, at)
        if at > 0 and len(scores) > 1:
            for trial in self._standings.rungs[at - 1]:
                self.folder.drop_checkpoints(trial, at - 1)

    def _result(self, is_cut_short: bool, best: int, found: HeldBack | None) -> TuneResult:
        material, plan, last = self.material, self.plan, len(self._standings.rungs) - 1
        text = material.evaluated_on.text
        kept = best if found is None or found.difference[0] > 0 else 0
        return TuneResult(
            variant="greedy" if text.is_greedy else "temperature_1",
            exact=text.is_greedy or text.is_sampled,
            num_draft_tokens=material.recipe.num_heads,
            searched=list(plan.trials[0]),
            full_steps=plan.full_steps,
            rungs=plan.rungs[: last + 1],
            trials=[*self._standings.took_part()],
            is_cut_short=is_cut_short,
            num_chosen_by=len(material.chosen_by),
            best=best,
            held_back=found,
            kept=kept,
            settings=kept_settings(plan.given, material.recipe, self._whole_run(kept)),
            run=str(self.folder.run(kept, last).relative_to(self.folder.path)),
        )

    @property
    def _trial_run(self) -> TrialRun:
        return self.material.trial_run(self.plan.pass_steps)

    def _whole_run(self, trial: int) -> Settings:
        settings, whole = self._standings.trials[trial], self.material.recipe.max_steps
        if whole is None:
            return settings
        return settings | {"max_steps": self._trial_run.steps(settings, whole)}
