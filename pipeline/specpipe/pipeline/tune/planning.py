"""The plan of a search: made once, from a budget; everything after it follows from it."""

from collections.abc import Sequence
from datetime import timedelta

from specpipe.pipeline.trials.clock import Clock
from specpipe.pipeline.trials.probe import Measured, measure
from specpipe.pipeline.trials.trial import step_size
from specpipe.pipeline.tune.folder import TuneFolder
from specpipe.pipeline.tune.halving import least_budget, planned_rungs
from specpipe.pipeline.tune.material import Material
from specpipe.pipeline.tune.space import search_axes, trial_settings
from specpipe.schemas.errors import ConfigError, IdentityError, UnfinishedError
from specpipe.schemas.records.tune import Settings, TunePlan
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.schemas.settings.tune import TuneConfig
from specpipe.stages.train.loop import Progress

_PLANNED_SHARE = 0.85
"""Of the time that is left; the rest is for steps that take longer than those of the probe."""


def made_plan(
    config: TuneConfig, material: Material, folder: TuneFolder, clock: Clock, progress: Progress
) -> TunePlan:
    """Raises ConfigError where the budget allows no search."""
    axes = search_axes(material.recipe, config.flat_fields_set)
    measured = _measured(config, material, folder, clock, progress)
    steps, per_run = config.budget_steps or 0.0, 0.0
    if measured is not None:
        assert config.budget_seconds is not None
        left = _PLANNED_SHARE * (config.budget_seconds - clock.seconds)
        steps = left / measured.seconds_per_step
        per_run = measured.seconds_per_run / measured.seconds_per_step
    possible = trial_settings(axes, config.max_trials, config.seed)
    num_trials = len(possible)
    rungs = planned_rungs(steps, material.whole.num_steps, num_trials, per_run)
    if not rungs:
        least = least_budget(material.whole.num_steps, num_trials, per_run)
        raise ConfigError(_too_small(config, least, measured, clock))
    return TunePlan(
        config=config.without_credentials().flat("json"),
        given=sorted(config.flat_fields_set),
        recipe=material.recipe.without_credentials().flat("json"),
        full_steps=material.whole.num_steps,
        # Trials of a short rung rank as whole runs do where they are what the recipe makes of a run
        # of its length.
        rungs=[
            rung.model_copy(update={"short_run": material.whole.short_run(rung.steps)})
            for rung in rungs
        ],
        trials=possible[: rungs[0].num_trials],
        pass_steps=material.pass_steps(_step_sizes(material.recipe, possible)),
        seconds_per_step=measured and measured.seconds_per_step,
        seconds_per_run=measured and measured.seconds_per_run,
        dump_fingerprint=material.dumps.fingerprint,
        eval_dump_fingerprint=material.evaluated_on.fingerprint,
    )


def _step_sizes(recipe: ResolvedTrainConfig, trials: Sequence[Settings]) -> list[int]:
    size = step_size(recipe)
    own = recipe.flat()[size]
    return sorted({own, *(trial.get(size, own) for trial in trials)})


def check_same_dumps(plan: TunePlan, material: Material) -> None:
    """Raise IdentityError where the search began on other dumps."""
    began = plan.dump_fingerprint, plan.eval_dump_fingerprint
    if began != (material.dumps.fingerprint, material.evaluated_on.fingerprint):
        raise IdentityError(
            f"the search began on another dump than {material.recipe.dump}, or on another one to"
            " evaluate on; use another --out for these"
        )


def _measured(
    config: TuneConfig, material: Material, folder: TuneFolder, clock: Clock, progress: Progress
) -> Measured | None:
    """None where the budget is in steps."""
    if config.budget_seconds is None:
        return None
    left = config.budget_seconds - clock.seconds
    try:
        if left > 0:
            return measure(material.trial_run(), folder.probe, left, progress)
    except UnfinishedError:
        if clock.seconds < config.budget_seconds:
            raise
    raise ConfigError(
        f"the budget of {config.budget} is over before a few steps were done to plan by; give a"
        " larger --budget"
    )


def _too_small(config: TuneConfig, least: int, measured: Measured | None, clock: Clock) -> str:
    if measured is None:
        return (
            f"the budget of {config.budget} is too small for a search, which takes {least} steps"
            f" here; give --budget {least}steps or more"
        )
    seconds = clock.seconds + least * measured.seconds_per_step / _PLANNED_SHARE
    minutes = int(seconds // 60) + 1
    return (
        f"the budget of {config.budget} is too small for a search: a step takes"
        f" {measured.seconds_per_step:.2g} s here, and the smallest search"
        f" {timedelta(seconds=round(seconds))}; give --budget {minutes}m or more"
    )
