"""The recipe: what follows from width and data where nothing is set, and that settings win."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.schemas.errors import IdentityError, UnfinishedError
from specpipe.schemas.settings.recipe import (
    BUDGETS,
    DECAY_EPOCHS,
    FEW_STEPS,
    LARGEST_STEP,
    PASS_TOKENS,
    SMALLEST_STEP,
    Facts,
    Recipe,
    resolve,
)
from specpipe.schemas.settings.train import MOST_EPOCHS, ResolvedTrainConfig, TrainConfig
from specpipe.stages.process.stop import StopQuestion
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.storage.dump import Dump
from specpipe.stages.train.recipe import facts_of, recipe_of
from specpipe.stages.train.run import run
from tests.papers import PAPERS
from tests.train.conftest import MakeConfig, MakeDump, read_metrics, same_run

SAMPLE_DUMP = Facts(hidden_size=192, num_samples=1900, num_tokens=228_000, num_supervised=130_000)


def recipe(facts: Facts = SAMPLE_DUMP, **given: Any) -> Recipe:
    return resolve(TrainConfig(dump="d", out="o", **given), facts)


def of_tokens(num_tokens: int, length: int = 200) -> Facts:
    return Facts(256, max(1, num_tokens // length), num_tokens, num_tokens // 2)


@settings(max_examples=300, deadline=None)
@given(
    hidden_size=st.sampled_from([16, 192, 640, 4096, 8192]),
    num_samples=st.integers(1, 10**6),
    mean=st.integers(2, 8192),
    preset=st.sampled_from(list(BUDGETS)),
    given_settings=st.fixed_dictionaries(
        {},
        optional={
            "optimizer": st.sampled_from(["adamw", "muon"]),
            "batch_size": st.integers(1, 512),
            "batch_tokens": st.integers(1, 10**6),
            "num_epochs": st.integers(1, 50),
            "max_steps": st.integers(1, 10**5),
            "schedule": st.sampled_from(["cosine", "wsd"]),
            "wsd_decay": st.floats(0.01, 1),
            "learning_rate": st.floats(1e-6, 1),
            "warmup_ratio": st.floats(0, 0.5),
        },
    ),
)
def test_whatever_the_data_nothing_is_left_open_and_what_is_set_stands(
    hidden_size: int, num_samples: int, mean: int, preset: Any, given_settings: dict[str, Any]
) -> None:
    facts = Facts(hidden_size, num_samples, num_samples * mean, num_samples)
    found = recipe(facts, preset=preset, **given_settings)
    config = found.config
    # It is a valid configuration, and its own recipe.
    assert ResolvedTrainConfig.model_validate(config.model_dump()) == config
    assert resolve(config, facts) == found
    assert all(getattr(config, name) == value for name, value in given_settings.items())
    assert config.model_fields_set == {"dump", "out", "preset", *given_settings}
    assert found.num_steps >= 1
    assert math.isfinite(found.num_epochs)
    assert found.num_epochs > 0
    assert 0 < config.learning_rate <= 1
    assert 0 <= found.num_warmup_steps < max(2, found.num_steps)
    if not given_settings.keys() & {"batch_tokens", "batch_size"}:
        assert SMALLEST_STEP <= config.batch_tokens <= LARGEST_STEP
        assert config.batch_tokens & (config.batch_tokens - 1) == 0
    assert ("samples; about " in found.in_words()) == (config.max_steps is None)
    assert "about" not in replace(found, is_counted=True).in_words()


@pytest.mark.parametrize(
    ("num_tokens", "batch_tokens", "num_epochs", "num_steps"),
    [
        (200, 512, 10, 10),
        (20_000, 512, 10, 400),
        (228_000, 1024, 10, 2230),
        (1_000_000, 4096, 10, 2450),
        (5_000_000, 8192, 7, 4277),
        (70_000_000, 16384, 2, 8546),
        (500_000_000, 32768, 2, 30518),
    ],
)
def test_few_tokens_make_small_steps_and_many_tokens_few_epochs(
    num_tokens: int, batch_tokens: int, num_epochs: int, num_steps: int
) -> None:
    found = recipe(of_tokens(num_tokens))
    config = found.config
    assert (config.batch_tokens, config.num_epochs) == (batch_tokens, num_epochs)
    assert (config.max_steps, found.num_steps) == (None, num_steps)
    assert config.pack_tokens == (PASS_TOKENS if batch_tokens > PASS_TOKENS else None)
    assert (found.shortage is None) is (num_steps >= FEW_STEPS)


def test_what_is_set_wins_and_the_rest_follows_from_it() -> None:
    assert recipe(num_epochs=1).config.batch_tokens == SMALLEST_STEP
    assert recipe(batch_tokens=8192).num_steps == 10 * math.ceil(228_000 / 8192)
    by_samples = recipe(batch_size=8)
    assert by_samples.num_steps == by_samples.config.num_epochs * math.ceil(1900 / 8)
    few, many = recipe(max_steps=60), recipe(max_steps=2000)
    assert (few.num_steps, many.num_steps) == (60, 2000)
    # Few steps are as large as those of the whole recipe; many see the data no more often.
    assert few.config.batch_tokens == recipe().config.batch_tokens
    assert many.config.batch_tokens == 1024
    assert many.num_epochs <= BUDGETS["default"].most_epochs


def test_the_rate_follows_from_the_optimiser_and_the_drafters_width() -> None:
    assert recipe(batch_tokens=192).config.learning_rate == 3e-3
    # Smaller steps have smaller rates, whether they are counted in tokens or in samples.
    assert recipe(batch_tokens=48).config.learning_rate == 1.5e-3
    assert recipe(of_tokens(10**6, 200), batch_size=2).config.learning_rate == 3.75e-3
    assert recipe(of_tokens(10**6, 200), batch_size=8).config.learning_rate == 7.5e-3
    largest = {
        width: recipe(Facts(width, 10**5, 10**7, 10**6), batch_tokens=8192).config.learning_rate
        for width in (16, 256, 640, 4096)
    }
    assert largest == {16: 1e-2, 256: 8.49e-3, 640: 5.37e-3, 4096: 2.12e-3}
    by_width = {
        width: recipe(Facts(width, 10, 1000, 500), optimizer="adamw").config.learning_rate
        for width in (16, 256, 640, 4096)
    }
    assert by_width == {16: 5e-3, 256: 4e-3, 640: 1.6e-3, 4096: 2.5e-4}
    assert recipe(optimizer="adamw", hidden_size=4096).config.learning_rate == 2.5e-4
    assert recipe(optimizer="adamw", max_steps=100).config.learning_rate == 5e-3


@pytest.mark.parametrize(
    ("num_steps", "times"),
    [(4000, 1), (360, 1), (359, 1.0), (160, 1.5), (90, 2), (40, 3), (22, 4), (9, 4)],
)
def test_a_short_run_has_a_higher_rate(num_steps: int, times: float) -> None:
    rate = recipe(batch_tokens=192, max_steps=num_steps).config.learning_rate
    assert rate == pytest.approx(3e-3 * times, rel=0.005)
    assert recipe(max_steps=num_steps, learning_rate=7e-3).config.learning_rate == 7e-3
    others: tuple[dict[str, Any], ...] = (
        {"optimizer": "adamw"}, {"init_from": "artifact"}, {"drafter": "mtp"}
    )  # fmt: skip
    for other in others:
        long = recipe(batch_tokens=192, max_steps=4000, **other)
        short = recipe(batch_tokens=192, max_steps=num_steps, **other)
        assert short.config.learning_rate == long.config.learning_rate


@pytest.mark.parametrize("facts", [SAMPLE_DUMP, of_tokens(50_000), of_tokens(9_000, 40)])
@pytest.mark.parametrize("given", [{}, {"batch_size": 4}, {"max_steps": 200}, {"num_epochs": 1}])
def test_a_short_training_is_what_the_recipe_makes_of_a_run_of_its_length(
    facts: Facts, given: dict[str, Any]
) -> None:
    whole = recipe(facts, **given)
    for num_steps in (1, 20, 100, whole.num_steps):
        short = whole.short_run(num_steps)
        size = {} if "batch_size" in given else {"batch_tokens": whole.config.batch_tokens}
        expected = recipe(facts, **given | size | {"max_steps": num_steps}).config
        rate = whole.config.learning_rate * short.rate_times
        assert rate == pytest.approx(expected.learning_rate, rel=0.01)
        found = TrainConfig.model_validate({"dump": "d", "out": "o"} | short.settings)
        assert found.warmup_ratio == expected.warmup_ratio
        assert found.muon_weight_decay == pytest.approx(expected.muon_weight_decay, rel=0.02)


def test_what_is_given_holds_in_a_short_training_and_is_counted_with_the_rates_own_steps() -> None:
    given = recipe(max_steps=400, warmup_ratio=0.3, weight_decay=0.1)
    assert given.short_run(90).settings == {}
    # Whole samples make more steps than the tokens say, which the rate was made with.
    exact = replace(recipe(num_epochs=1, batch_tokens=1024), num_steps=600)
    assert (
        exact.config.learning_rate > recipe(max_steps=600, batch_tokens=1024).config.learning_rate
    )
    assert exact.short_run(600).rate_times == 1
    assert exact.short_run(150).rate_times == pytest.approx(2)


def test_the_weight_decay_is_counted_in_passes_over_the_data() -> None:
    for facts in (SAMPLE_DUMP, of_tokens(50_000), of_tokens(10**7)):
        config = recipe(facts).config
        steps = facts.steps_of(config.batch_tokens, None)
        left = (1 - config.learning_rate * config.muon_weight_decay) ** (steps * DECAY_EPOCHS)
        assert left == pytest.approx(math.exp(-1), abs=0.02)
    # A gentle rate does not wear the weights away that it begins with.
    for gentle in (recipe(learning_rate=1e-5), recipe(muon_learning_rate=1e-310)):
        assert gentle.config.muon_weight_decay == recipe().config.muon_weight_decay


@pytest.mark.parametrize(
    ("given", "decay"),
    [
        ({"muon_weight_decay": 0.3, "weight_decay": 0.1}, 0.3),
        ({"weight_decay": 0.1}, 0.1),
        ({"weight_decay": 0.0}, 0.0),
        ({"init_from": "artifact"}, 0.0),
        ({"drafter": "mtp"}, 0.0),
    ],
)
def test_a_weight_decay_that_is_set_wins_and_trained_weights_have_none(
    given: dict[str, Any], decay: float
) -> None:
    assert recipe(**given).config.muon_weight_decay == decay


@pytest.mark.parametrize(
    ("given", "weight"),
    [
        ({}, 10.0),
        ({"drafter": "peagle"}, 10.0),
        ({"drafter": "medusa"}, 0.0),
        ({"drafter": "dflash"}, 0.0),
        ({"state_loss": 0.5, "drafter": "dflash"}, 0.5),
        ({"state_loss": 0.0}, 0.0),
        ({"hidden_size": 96}, 0.0),
        ({"init_from": "artifact"}, 0.0),
    ],
)
def test_the_loss_of_states_is_for_drafters_that_begin_with_the_targets_head(
    given: dict[str, Any], weight: float
) -> None:
    assert recipe(**given).config.state_loss == weight
    without = replace(SAMPLE_DUMP, has_final_states=False)
    assert recipe(without, **given).config.state_loss == given.get("state_loss", 0.0)


def test_presets_are_budgets_of_steps() -> None:
    quick, default, best = (recipe(preset=preset) for preset in ("quick", "default", "best"))
    assert quick.num_steps == quick.config.max_steps == 100
    assert default.num_steps > BUDGETS["default"].steps
    assert best.num_steps > BUDGETS["best"].steps > default.num_steps
    assert recipe(preset="quick", num_epochs=3).config.max_steps is None
    # Of little data even a quick look has no hundred steps.
    assert recipe(of_tokens(2000), preset="quick").num_steps == 40


def test_short_runs_have_some_steps_of_warm_up() -> None:
    assert recipe(max_steps=60).num_warmup_steps == 3
    assert recipe(max_steps=20).num_warmup_steps == 3
    assert recipe(max_steps=10).num_warmup_steps == 2
    assert recipe(max_steps=1000).num_warmup_steps == 40
    assert recipe(max_steps=60, wsd_decay=1).num_warmup_steps == 3


def test_too_few_steps_are_warned_about_unless_they_are_asked_for() -> None:
    few = recipe(Facts(256, 1, 90, 60))
    assert few.num_steps == 10
    assert few.shortage is not None
    assert "10 steps are few" in few.shortage
    assert "--num-epochs 200" in few.shortage
    assert recipe(Facts(256, 1, 90, 60), num_epochs=200).shortage is None
    assert recipe(max_steps=5).shortage is None
    assert recipe(preset="quick").shortage is None


def test_samples_count_by_their_weight(dump: Path) -> None:
    identity = Dump.open(str(dump)).identity
    refs = [
        SampleRef(0, at, 100, f"{at:032x}", weight, 40) for at, weight in enumerate((1.0, 0.5, 2.5))
    ]
    assert facts_of(refs, identity) == Facts(32, 4, 400, 160)
    assert facts_of(refs[1:2], identity) == Facts(32, 1, 50, 20)


def test_a_run_says_first_what_it_does_and_leaves_it_in_numbers(
    make_open: MakeConfig, tmp_path: Path
) -> None:
    told: list[Recipe] = []
    result = run(make_open(), tell=told.append)
    [said] = told
    assert result.recipe == said.record
    assert said.num_steps == result.steps == said.record.num_steps
    assert said.facts.num_supervised > 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    for name in ("learning_rate", "warmup_ratio", "num_epochs", "batch_tokens", "eval_tokens"):
        assert stored[name] == getattr(said.config, name)
    rows = [row for row in read_metrics(result.out) if "eval" not in row]
    assert max(row["learning_rate"] for row in rows) == said.config.learning_rate
    # The same command finds its run, though the file holds more than it sets.
    assert run(make_open()).did_nothing


def test_sigterm_ends_the_count_of_steps(dump: Path) -> None:
    opened = Dump.open(str(dump))
    refs, identity = SampleReader(opened, None).refs(), opened.identity
    asked = StopQuestion(None)
    asked.on_signal(signal.SIGTERM, None)
    config = TrainConfig(dump="d", out="o", num_epochs=MOST_EPOCHS)
    with pytest.raises(UnfinishedError, match="steps of 100,000 epochs were counted"):
        recipe_of(config, refs, identity, asked)
    with pytest.raises(ValueError, match="less than or equal to 100000"):
        TrainConfig(dump="d", out="o", num_epochs=MOST_EPOCHS + 1)


def test_the_function_of_the_sums_is_near_the_runs_own_number_of_steps(dump: Path) -> None:
    opened = Dump.open(str(dump))
    refs, identity = SampleReader(opened, None).refs(), opened.identity
    config = TrainConfig(dump="d", out="o", batch_tokens=300, num_epochs=4)
    about = resolve(config, facts_of(refs, identity))
    exact = recipe_of(config, refs, identity, StopQuestion(None))
    assert about.config == exact.config
    assert about.num_steps == pytest.approx(exact.num_steps, rel=0.1)


@pytest.fixture
def make_open(dump: Path, tmp_path: Path) -> MakeConfig:
    """A run with nothing set that the recipe decides, but for what keeps it short."""

    def make(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "dump": str(dump),
            "out": str(tmp_path / "run"),
            "device": "cpu",
            "draft_vocab_size": 64,
            "eval_every": 4,
            "held_out_fraction": 0.2,
        }
        return TrainConfig(**(settings | changes))

    return make


def test_one_sample_trains_and_is_said_to_be_too_little(
    make_open: MakeConfig, make_dump: MakeDump, dump: Path
) -> None:
    told: list[Recipe] = []
    alone = make_dump(num_samples=1, data_seed=7)
    result = run(make_open(dump=str(alone), eval_dump=str(dump)), tell=told.append)
    assert result.steps == 10
    assert "10 steps are few" in str(told[0].shortage)
    assert told[0].record.num_samples == 1
    assert math.isfinite(result.draft_loss_last)


def stopped_at_first(config: TrainConfig, times: int = 3) -> None:
    for _ in range(times):
        with pytest.raises(UnfinishedError):
            run(config.model_copy(update={"time_limit": 1e-6}))


def test_a_run_of_the_recipe_resumes_bit_for_bit(make_open: MakeConfig, tmp_path: Path) -> None:
    whole, broken = (
        make_open(out=str(tmp_path / name), num_epochs=4) for name in ("whole", "broken")
    )
    run(whole)
    stopped_at_first(broken)
    run(broken)
    same_run(tmp_path / "whole", tmp_path / "broken")


def as_before(run_folder: Path) -> None:
    """Make config.json as it was written before there was a recipe: without its settings."""
    path = run_folder / "config.json"
    values = json.loads(path.read_text())
    # The drafter's settings stood beside the others.
    drafter = values.pop("drafter")
    values |= drafter | {"drafter": drafter["kind"]}
    for name in ("preset", "serve_anywhere", "kind", "fresh_layer", "muon_weight_decay"):
        del values[name]
    path.write_text(json.dumps(values, indent=2))


def test_a_run_of_before_goes_on_with_its_own_numbers(
    make_open: MakeConfig, tmp_path: Path
) -> None:
    """The old command set little; its config.json has the old defaults."""
    old_defaults: dict[str, Any] = {
        **PAPERS,
        "num_epochs": 10,
        "batch_tokens": 8192,
        "warmup_ratio": 0.04,
        "eval_tokens": 100_000,
    }
    whole = make_open(out=str(tmp_path / "whole"), max_steps=8, **old_defaults)
    run(whole)
    stopped_at_first(make_open(max_steps=8, **old_defaults), times=2)
    as_before(tmp_path / "run")
    stopped_at_first(make_open(max_steps=8, preset="best"), times=2)
    stopped_at_first(make_open(), times=1)
    for other in ({"optimizer": "muon"}, {"learning_rate": 7.5e-3}, {"norm_output": True}):
        [name] = other
        with pytest.raises(IdentityError, match=rf"other settings \({name}: "):
            run(make_open(**other))
    run(make_open())
    same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_of_before_goes_on_without_what_is_new(make_open: MakeConfig, tmp_path: Path) -> None:
    muon: dict[str, Any] = {"optimizer": "muon", "max_steps": 6, "checkpoint_every": 2}
    new = {"muon_weight_decay": 0.0, "state_loss": 0.0}
    run(make_open(out=str(tmp_path / "whole"), **new, **muon))
    stopped_at_first(make_open(**new, **muon))
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: values[name] for name in values if name not in new}))
    run(make_open(**muon))
    same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_goes_on_with_other_passes_only_where_the_command_says_so(
    make_open: MakeConfig, tmp_path: Path
) -> None:
    config = make_open(max_steps=4, pack_tokens=100)
    stopped_at_first(config, times=1)
    stopped_at_first(make_open(max_steps=4), times=1)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["pack_tokens"] == 100
    stopped_at_first(make_open(max_steps=4, pack_tokens=200), times=1)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["pack_tokens"] == 200
