"""The plan of a comparison: everyone is trained by the same number of steps, on the same tokens."""

import math
from datetime import timedelta

from specpipe.pipeline.choose.candidates import Candidate, check_some
from specpipe.pipeline.choose.folder import ChooseFolder
from specpipe.pipeline.choose.timing import Say, Timing
from specpipe.pipeline.trials.clock import Clock
from specpipe.pipeline.trials.probe import Measured, measure
from specpipe.pipeline.tune.halving import LEAST_STEPS
from specpipe.schemas.errors import ConfigError, DivergedError, IdentityError
from specpipe.schemas.records.choose import ChoosePlan
from specpipe.schemas.settings.choose import ChooseConfig
from specpipe.stages.train.loop import Progress

_PLANNED_SHARE = 0.85
"""Of the time that is left; the rest is for steps that take longer than those of the probe."""


def made_plan(
    config: ChooseConfig,
    given: tuple[list[Candidate], dict[str, str]],
    folder: ChooseFolder,
    clock: Clock,
    told: tuple[Progress, Say],
) -> ChoosePlan:
    """Train everyone for a few steps, time the engine with what came of it, and divide what is left
    of the budget. Raises ConfigError where it is too small."""
    progress, say = told
    found, left_out = given
    measured: dict[str, Measured] = {}
    check_steps(config, found)

    def saving(line: str) -> None:
        clock.save()
        say(line)

    for candidate in found:
        say(f"measuring a step of {candidate.name}")
        try:
            name = candidate.name
            trial = candidate.trial if config.budget_seconds else candidate.short_trial
            measured[name] = measure(trial, folder.probe(name), None, progress)
        except (ConfigError, DivergedError) as error:
            left_out = left_out | {candidate.name: str(error)}
        finally:
            clock.save()
    found = [candidate for candidate in found if candidate.name in measured]
    check_some(found, left_out)
    no_speed = {} if config.step_times is not None else Timing(config, folder, saving).run(found)
    clock.save()
    full_steps = full_run(found)
    opened = found[0].opened
    steps = planned_steps(config, full_steps, list(measured.values()), clock.seconds)
    return ChoosePlan(
        config=config.without_credentials().flat("json"),
        given=tuple(sorted(config.flat_fields_set)),
        steps=steps,
        full_steps=full_steps,
        recipes={
            one.name: one.recipe.without_credentials().model_dump(mode="json") for one in found
        },
        short_runs={one.name: one.opened.recipe.short_run(steps) for one in found},
        left_out=left_out,
        no_speed=no_speed,
        dump_fingerprint=opened.dumps.fingerprint,
        eval_dump_fingerprint=opened.evaluated_on.fingerprint,
    )


def planned_steps(
    config: ChooseConfig, full_steps: int, measured: list[Measured], seconds: float
) -> int:
    """Of every training; `seconds` of the budget are gone."""
    least = min(LEAST_STEPS, full_steps)
    if config.budget_steps is not None:
        return min(math.floor(config.budget_steps / len(measured)), full_steps)
    assert config.budget_seconds is not None
    per_step = sum(one.seconds_per_step for one in measured)
    per_run = sum(one.seconds_per_run for one in measured)
    left = _PLANNED_SHARE * (config.budget_seconds - seconds) - per_run
    steps = math.floor(left / per_step)
    if steps < least:
        most = seconds + (per_run + least * per_step) / _PLANNED_SHARE
        gone = f" ({timedelta(seconds=round(seconds))} are gone)" if seconds > 1 else ""
        raise _too_small(config, len(measured), least, f"{math.ceil(most / 60)}m", gone)
    return min(steps, full_steps)


def check_steps(config: ChooseConfig, found: list[Candidate]) -> None:
    """Raise ConfigError where a budget of steps is too small: that needs no measurement."""
    least, number = min(LEAST_STEPS, full_run(found)), len(found)
    if config.budget_steps is not None and config.budget_steps < least * number:
        raise _too_small(config, number, least, f"{least * number}steps")


def full_run(found: list[Candidate]) -> int:
    """Steps of a run without `specpipe choose`, of the drafter with the fewest."""
    return min(candidate.opened.recipe.num_steps for candidate in found)


def _too_small(
    config: ChooseConfig, number: int, least: int, needed: str, gone: str = ""
) -> ConfigError:
    return ConfigError(
        f"the budget of {config.budget} is too small to train {number} drafters, each for {least}"
        f" steps at least{gone}; give --budget {needed} or more, or fewer --drafters"
    )


def check_same_dumps(plan: ChoosePlan, candidate: Candidate) -> None:
    """Raise IdentityError where the comparison began on other dumps."""
    opened = candidate.opened
    now = opened.dumps.fingerprint, opened.evaluated_on.fingerprint
    if now != (plan.dump_fingerprint, plan.eval_dump_fingerprint):
        raise IdentityError(
            "the comparison began on another dump, or on another one to evaluate on; use another"
            " --out for these"
        )
