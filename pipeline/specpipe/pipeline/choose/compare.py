"""`specpipe choose` as a function: from a dump to a recommendation, resumable at any moment.

A few steps of each drafter say what a step takes and give an artifact of its shape, by which the
engine is timed; the plan, written once, divides what is left of the budget. Every piece is an
ordinary run or export in a folder of its own, which does nothing when it is complete.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from specpipe.pipeline.choose.candidates import Candidate, candidates
from specpipe.pipeline.choose.folder import ChooseFolder
from specpipe.pipeline.choose.judge import (
    batch_sizes,
    ranked,
    reasons,
    recommendation,
    speedups,
)
from specpipe.pipeline.choose.page import choose_page
from specpipe.pipeline.choose.planning import check_same_dumps, made_plan
from specpipe.pipeline.choose.timing import Say, check_target_of, collected, given_times, target_of
from specpipe.pipeline.choose.train_file import settings_of_best
from specpipe.pipeline.trials.clock import Clock
from specpipe.pipeline.trials.folder import begun_with
from specpipe.pipeline.trials.trial import TrialRun
from specpipe.schemas.errors import ConfigError, DivergedError
from specpipe.schemas.records.choose import (
    PAGE_FILE,
    RESULT_FILE,
    RUNS_FOLDER,
    STEP_TIMES_FILE,
    ChoosePlan,
    ChooseResult,
    Compared,
    StepTimes,
)
from specpipe.schemas.records.metrics import ReplayCurve
from specpipe.schemas.records.tune import PLAN_FILE, SETTINGS_FILE
from specpipe.schemas.settings.choose import ChooseConfig
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.train.run import run

Progress = Callable[[int, int, str, dict[str, float]], None]
"""Told how many of how many steps are done, what is trained, and figures of its latest step."""


def choose(config: ChooseConfig, *, progress: Progress, say: Say) -> ChooseResult:
    """Compare, or go on; a complete comparison does nothing.

    Raises what training raises but for DivergedError, ConfigError where nothing can be compared or
    the budget is too small, IdentityError where the folder is of other settings.
    """
    folder = ChooseFolder(config.out)
    with folder.locked():
        plan, result = folder.plan(config), folder.result()
        if plan is not None and result is not None:
            recipes = {
                name: ResolvedTrainConfig.model_validate(recipe)
                for name, recipe in plan.recipes.items()
            }
            folder.check_still_of(config, next(iter(recipes.values())), plan)
            settings = [] if result.recommended is None else [SETTINGS_FILE]
            if folder.lacks(PAGE_FILE, *settings):
                write_shown(config, folder, result, recipes)
            return result.model_copy(update={"did_nothing": True})
        times = given_times(config)
        with folder.clock() as clock:
            found, left_out = candidates(config, [] if plan is None else [*plan.recipes])
            if plan is None:

                def probed(step: int, total: int, figures: dict[str, float]) -> None:
                    progress(step, total, "measuring a step", figures)
                    clock.tick()

                plan = made_plan(config, (found, left_out), folder, clock, (probed, say))
                folder.write(PLAN_FILE, plan.to_json())
            check_same_dumps(plan, found[0])
            planned = {one.name: one for one in found}
            if gone := sorted(plan.recipes.keys() - planned.keys()):
                raise ConfigError(f"{gone[0]} was compared before: {left_out[gone[0]]}")
            if times is not None:
                check_target_of(times, target_of(config, found[0]), say)
            return _Comparison(config, folder, clock, planned, plan, times).run(progress, say)


def write_shown(
    config: ChooseConfig,
    folder: ChooseFolder,
    result: ChooseResult,
    recipes: Mapping[str, ResolvedTrainConfig],
) -> None:
    """Write what follows from the result: train.yaml, where a drafter is recommended, and the
    page."""
    if result.recommended is not None:
        settings = settings_of_best(config, recipes[result.recommended], result)
        folder.write(SETTINGS_FILE, settings)
    folder.write(PAGE_FILE, choose_page(result, folder.path))


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Runs what is left of a plan."""

    config: ChooseConfig
    folder: ChooseFolder
    clock: Clock
    found: dict[str, Candidate]
    plan: ChoosePlan
    given: StepTimes | None

    def run(self, progress: Progress, say: Say) -> ChooseResult:
        compared = []
        timed = [*self.plan.recipes.keys() - self.plan.no_speed.keys()]
        target = target_of(self.config, self._first)
        times = self.given or collected(self.folder, target, timed)
        for at, name in enumerate(self.plan.recipes):
            replayed = self._train(at, name, progress)
            tau = f"tau {replayed.tau[-1]:.3f}" if replayed else "diverged"
            say(f"{name}: {tau} after {self.plan.steps:,} steps")
            compared.append(self._compared(self.found[name], replayed, times))
        result = self._result(compared, times)
        if times is not None:
            self.folder.write(STEP_TIMES_FILE, times.to_json())
        recipes = {name: self._recipe(self.found[name]) for name in self.plan.recipes}
        write_shown(self.config, self.folder, result, recipes)
        self.folder.write(RESULT_FILE, result.to_json())
        return result

    @property
    def _first(self) -> Candidate:
        return next(iter(self.found.values()))

    def _recipe(self, candidate: Candidate) -> ResolvedTrainConfig:
        return begun_with(self.plan.recipes[candidate.name], candidate.recipe)

    def _train(self, at: int, name: str, progress: Progress) -> ReplayCurve | None:
        """None where training diverged."""
        steps, total = self.plan.steps, self.plan.steps * len(self.plan.recipes)

        def told(step: int, _total: int, figures: dict[str, float]) -> None:
            progress(at * steps + step, total, name, figures)
            self.clock.tick()

        candidate = self.found[name]
        trial = TrialRun(self._recipe(candidate), candidate.recipe.eval_tokens)
        short_run = self.plan.short_runs.get(name)
        config = trial.config({}, steps, self.folder.run(name), short_run)
        try:
            best = run(config.model_copy(update={"time_limit": None}), progress=told).best
        except DivergedError:
            return None
        finally:
            self.clock.save()
        curve: ReplayCurve = getattr(best, _replay(candidate))
        return curve

    def _compared(
        self, candidate: Candidate, replayed: ReplayCurve | None, times: StepTimes | None
    ) -> Compared:
        name, serving = candidate.name, candidate.architecture.serving
        speed = []
        if replayed is not None and times is not None:
            speed = speedups(times, name, replayed.tau, parallel=serving.is_parallel)
        why = self.plan.no_speed.get(name, "the step times do not hold it")
        if replayed is None:
            why = "training diverged; a lower --learning-rate may do"
        return Compared(
            drafter=name,
            title=serving.title,
            is_parallel=serving.is_parallel,
            steps=self.plan.steps,
            replay=_replay(candidate),
            exact=replayed is not None and replayed.exact,
            tau=[] if replayed is None else replayed.tau,
            tau_low=[] if replayed is None else replayed.tau_low,
            tau_high=[] if replayed is None else replayed.tau_high,
            speedups=speed,
            no_speed="" if speed else why,
            run=f"{RUNS_FOLDER}/{name}",
        )

    def _result(self, compared: list[Compared], times: StepTimes | None) -> ChooseResult:
        if all(not one.tau for one in compared):
            raise DivergedError(
                f"training diverged for every drafter; see {self.folder.path / RUNS_FOLDER}, and"
                " give a lower --learning-rate and another --out"
            )
        sizes, plan = batch_sizes(times), self.plan
        order = ranked(compared, sizes)
        where = "step times in vLLM"
        times_of = "" if times is None else f"{where} {times.vllm_version}"
        if self.given is not None:
            times_of += f" of {self.config.step_times}"
        advice = recommendation(order, sizes, times_of)
        return ChooseResult(
            steps=plan.steps,
            full_steps=plan.full_steps,
            num_samples=len(self._first.eval_refs),
            batch_sizes=sizes,
            times_of=times_of,
            compared=order,
            left_out=plan.left_out,
            recommended=None if advice is None else order[0].drafter,
            draft_tokens=None if advice is None else advice.draft_tokens,
            num_heads=None if advice is None else advice.most_draft_tokens,
            schedule=[] if advice is None else advice.schedule,
            reasons=reasons(order, sizes, plan.steps, plan.full_steps, times_of),
        )


def _replay(candidate: Candidate) -> str:
    """The replay of what an engine does on such text."""
    if candidate.opened.evaluated_on.text.is_greedy:
        return "replay_greedy"
    sampled = candidate.architecture.settings.samples_drafts
    return "replay_temperature_1" if sampled else "replay_greedy_draft"
