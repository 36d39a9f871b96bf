"""What a search tries and for how long: pure functions of the recipe, the budget and the seed."""

from typing import Any

import pytest

from specpipe.pipeline.tune.halving import least_budget, planned_rungs, total_steps
from specpipe.pipeline.tune.space import RATE_RANGE, middle, search_axes, trial_settings
from specpipe.pipeline.tune.standings import going_on, ranked
from specpipe.schemas.drafters.eagle3 import SWITCHES
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.tune import HeldBack, Rung, Settings, TrialScore, TunePlan
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.schemas.settings.tune import TuneConfig
from tests.train.conftest import resolved


def recipe(**settings: Any) -> ResolvedTrainConfig:
    given = {"dump": "d", "out": "o", "learning_rate": 0.008, "batch_tokens": 1024}
    return resolved(TrainConfig.model_validate(given | settings))


def plan_of(rungs: list[Rung], trials: list[Settings]) -> TunePlan:
    return TunePlan(
        config={}, given=[], recipe={}, full_steps=1, rungs=rungs, trials=trials,
        seconds_per_step=None, seconds_per_run=None, dump_fingerprint="", eval_dump_fingerprint="",
    )  # fmt: skip


def score(tau: float) -> TrialScore:
    return TrialScore(steps=1, tau=tau, tau_low=tau, tau_high=tau)


@pytest.mark.parametrize("max_trials", [1, 2, 3, 9, 32])
@pytest.mark.parametrize("per_run", [0.0, 25.0])
@pytest.mark.parametrize("full", [12, 100, 563, 20_000])
@pytest.mark.parametrize("budget", [90, 400, 2_000, 10_000, 500_000])
def test_a_plan_keeps_to_its_budget_and_to_the_recipe_s_length(
    budget: int, full: int, per_run: float, max_trials: int
) -> None:
    rungs = planned_rungs(budget, full, max_trials, per_run)
    if not rungs:
        assert budget < least_budget(full, max_trials, per_run)
        return
    runs = sum(rung.num_trials for rung in rungs)
    assert total_steps(rungs) + per_run * runs <= budget * 1.01
    assert rungs[-1].steps <= full
    assert min(rung.steps for rung in rungs) >= min(30, full)
    assert [rung.has_middle for rung in rungs] == [at > 0 for at in range(len(rungs))]
    counts = [rung.num_trials for rung in rungs]
    assert counts[0] <= max_trials
    # No more than there are: each later rung knows one more.
    assert all(count <= counts[0] + at for at, count in enumerate(counts))
    if max_trials > 3:
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] >= 3
    trials = [{"learning_rate": 1e-3 * n} for n in range(counts[0])]
    assert plan_of(rungs, trials).rungs == rungs
    with pytest.raises(ValueError, match="more trials than there are settings"):
        plan_of(rungs, trials[1:])


def test_a_large_budget_trains_the_last_rung_to_the_end_and_then_tries_more() -> None:
    few, many = (planned_rungs(times * 900, 900, 32) for times in (7, 15))
    assert [rung.steps for rung in few] == [rung.steps for rung in many] == [100, 300, 900]
    assert few[0].num_trials < many[0].num_trials == 32


@pytest.mark.parametrize("full", [12, 900])
def test_the_least_budget_is_enough_and_one_step_less_is_not(full: int) -> None:
    least = least_budget(full, 32)
    assert planned_rungs(least, full, 32)
    assert not planned_rungs(least - 1, full, 32)


def test_the_recipe_goes_on_always_and_what_diverged_never() -> None:
    scores = {0: score(1.1), 1: score(0.0), 2: score(1.5), 3: score(1.3), 4: score(1.5)}
    assert going_on(scores, 3) == [0, 2, 4]
    assert going_on(scores, 5) == [0, 2, 4, 3]
    assert ranked(scores) == [2, 4, 3, 0]


def test_the_middle_of_trials_has_their_mean_rate_and_what_most_of_them_have() -> None:
    axes = search_axes(recipe(), frozenset())
    own = trial_settings(axes, 1, seed=0)[0]
    best = [
        own | {"learning_rate": 0.016, "batch_tokens": 512, "head_decay": 0.6},
        own | {"learning_rate": 0.004, "state_loss": 3.0, "head_decay": 1.0},
        own | {"learning_rate": 0.008, "batch_tokens": 512, "head_decay": 0.8},
    ]
    assert middle(axes, best) == own | {
        "learning_rate": 0.008, "batch_tokens": 512, "head_decay": 0.6
    }  # fmt: skip
    given = search_axes(recipe(), {"learning_rate", "batch_tokens"})
    own = trial_settings(given, 1, seed=0)[0]
    assert middle(given, [own, own | {"state_loss": 3.0}]) == own


def test_trials_stand_around_the_recipe_and_a_seed_decides_them() -> None:
    axes = search_axes(recipe(), frozenset())
    trials = trial_settings(axes, 32, seed=3)
    own = recipe().flat()
    assert all(own[name] == value for name, value in trials[0].items())
    assert trials == trial_settings(axes, 32, seed=3) != trial_settings(axes, 32, seed=4)
    assert trials[:9] == trial_settings(axes, 9, seed=3)
    assert len({str(trial) for trial in trials}) == 32
    rates = [trial["learning_rate"] / own["learning_rate"] for trial in trials]
    assert 1 / RATE_RANGE <= min(rates) < 0.5
    assert 2 < max(rates) <= RATE_RANGE
    assert {trial["batch_tokens"] for trial in trials} == {512, 1024, 2048}
    assert {trial["state_loss"] for trial in trials} == {3.0, 10.0, 30.0}
    assert len({tuple(trial[name] for name in SWITCHES) for trial in trials}) > 3
    assert len({(trial["head_decay"], trial["head_weights"]) for trial in trials}) == 4
    for trial in trials:
        TrainConfig.model_validate(own | trial)


def test_what_is_given_is_not_searched() -> None:
    given = {"learning_rate", "norm_output", "head_decay"}
    trials = trial_settings(search_axes(recipe(norm_output=True), given), 32, seed=0)
    assert not given & {name for trial in trials for name in trial}
    assert {trial["head_weights"] for trial in trials} == {"static", "survival"}
    by_samples = trial_settings(search_axes(recipe(batch_size=8), frozenset()), 32, seed=0)
    assert {trial["batch_size"] for trial in by_samples} == {4, 8, 16}
    one_head = search_axes(recipe(num_heads=1), {"batch_tokens", "state_loss", *SWITCHES})
    assert list(trial_settings(one_head, 2, seed=0)[1]) == ["learning_rate"]
    by_starts = search_axes(recipe(head_weights="dpace"), {"head_weights"})
    assert not any("head_decay" in axis.names for axis in by_starts)
    anywhere = search_axes(recipe(serve_anywhere=True), {"serve_anywhere"})
    for trial in trial_settings(anywhere, 32, seed=0):
        TrainConfig.model_validate(recipe(serve_anywhere=True).model_dump() | trial)
    every = {"learning_rate", "batch_tokens", "state_loss", *SWITCHES}
    with pytest.raises(ConfigError, match="nothing is left"):
        search_axes(recipe(num_heads=1), every)


@pytest.mark.parametrize(
    ("budget", "seconds", "steps"),
    [("30m", 1800, None), ("1.5h", 5400, None), ("90s", 90, None), (45, 45, None),
     ("2000steps", None, 2000), ("2000 steps", None, 2000)],
)  # fmt: skip
def test_a_budget_is_a_time_or_steps(
    budget: str | int, seconds: float | None, steps: float | None
) -> None:
    config = TuneConfig.model_validate({"dump": "d", "out": "o", "budget": budget})
    assert (config.budget_seconds, config.budget_steps) == (seconds, steps)


@pytest.mark.parametrize(
    "budget", ["", "soon", "30 minutes", "0m", -1, "1e3s", True, f"{10**400}steps"]
)
def test_other_budgets_are_refused(budget: Any) -> None:
    with pytest.raises(ValueError, match="budget"):
        TuneConfig.model_validate({"dump": "d", "out": "o", "budget": budget})


@pytest.mark.parametrize(("low", "is_chance"), [(-0.02, True), (0.004, False)])
def test_a_gain_whose_interval_holds_0_may_be_chance(low: float, is_chance: bool) -> None:
    tau = [1.2, 1.1, 1.3]
    back = HeldBack(num_samples=9, chosen=tau, recipe=tau, difference=[0.01, low, 0.05])
    assert back.may_be_chance is is_chance
