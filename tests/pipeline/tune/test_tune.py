"""A whole search on a tiny dump: what it leaves, and that a kill changes none of it."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from specpipe.pipeline.cli import specpipe
from specpipe.pipeline.commands.train.options import train_config
from specpipe.pipeline.tune import halving, planning
from specpipe.pipeline.tune.material import Material
from specpipe.pipeline.tune.search import tune
from specpipe.schemas.errors import (
    ConfigError,
    IdentityError,
    IntegrityError,
    SpecpipeError,
    UnfinishedError,
)
from specpipe.schemas.records.tune import TunePlan, TuneResult
from specpipe.schemas.settings.train import TrainConfig
from specpipe.schemas.settings.tune import TuneConfig
from specpipe.stages.process.stop import stops_early
from specpipe.stages.train.run import run
from tests.pipeline.tune.tune_killed import LEAST_STEPS

KILLED = Path(__file__).with_name("tune_killed.py")
ROOT = Path(__file__).parents[3]

MakeSearch = Callable[..., TuneConfig]


def small_search(dump: Path, out: Path, **changes: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "dump": str(dump),
        "out": str(out),
        "device": "cpu",
        "draft_vocab_size": 64,
        "optimizer": "adamw",
        "batch_tokens": 300,
        "max_steps": 12,
        "held_out_fraction": 0.3,
        "budget": "64steps",
        "max_trials": 4,
    }
    return TuneConfig.model_validate(settings | changes)


@pytest.fixture
def make_search(dump: Path, tmp_path: Path) -> MakeSearch:
    """Four trials of four steps; of twelve three of these and the middle of the best."""

    def make(**changes: Any) -> TuneConfig:
        return small_search(dump, tmp_path / "tuned", **changes)

    return make


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halving, "LEAST_STEPS", LEAST_STEPS)


@pytest.fixture(scope="module")
def whole(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a search that nothing has stopped."""
    out = tmp_path_factory.mktemp("search") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halving, "LEAST_STEPS", LEAST_STEPS)
        search(small_search(dump, out))
    return out


def search(config: TuneConfig, at_step: Callable[[int], None] = lambda _: None) -> TuneResult:
    with stops_early():
        return tune(config, progress=lambda done, *_: at_step(done), say=lambda _: None)


def files(out: Path | str) -> dict[str, bytes]:
    """What a search leaves that does not depend on time and place."""
    out = Path(out)
    return {name: (out / name).read_bytes() for name in ("tune.json", "train.yaml")}


def command(config: TuneConfig, *arguments: str) -> Result:
    """`specpipe tune` with these settings, in this process."""
    file = Path(f"{config.out}.yaml")
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return CliRunner().invoke(specpipe, ["tune", "--config", str(file), *arguments])


def test_a_search_leaves_settings_figures_and_a_page(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    config = make_search()
    done = command(config, "--json")
    assert done.exception is None, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    out = Path(config.out)
    assert told.items() >= json.loads((out / "tune.json").read_text()).items()
    result = TuneResult.model_validate_json((out / "tune.json").read_text())
    assert [(rung.steps, rung.num_trials) for rung in result.rungs] == [(4, 4), (12, 4)]
    first, last = (
        {n: score.tau for n, trial in enumerate(result.trials) if (score := trial.score(rung))}
        for rung in (0, 1)
    )
    assert [*first] == [0, 1, 2, 3]
    others = sorted((1, 2, 3), key=lambda n: -first[n])[:2]
    # Trial 4 is the middle of the best three.
    assert last.keys() == {0, 4, *others}
    best_three = sorted(first, key=lambda n: -first[n])[:3]
    rates = [result.trials[n].settings["learning_rate"] for n in best_three]
    middle = result.trials[4].settings["learning_rate"]
    assert middle == pytest.approx(math.prod(rates) ** (1 / 3), rel=0.01)
    assert result.trials[4].first_rung == 1
    assert last[result.best] == max(last.values())
    if result.kept:
        assert result.held_back is not None
        assert result.held_back.chosen[0] > result.held_back.recipe[0]
    # What is kept is what train takes.
    settings = yaml.safe_load((out / "train.yaml").read_text())
    assert settings == result.settings
    assert settings.items() >= result.trials[result.kept].settings.items()
    config_of_train = train_config(out / "train.yaml", {"out": str(tmp_path / "run")})
    assert config_of_train.optimizer == "adamw"
    assert config_of_train.max_steps == 12
    page = (out / "tune.html").read_text("utf-8")
    for words in ("tau by steps", "tau by learning rate", "specpipe tune", "0 (recipe)"):
        assert words in page
    assert (out / result.run / "best").exists()
    assert list(out.glob("trials/*-rung-1/checkpoints")) == []
    assert "0 (recipe)" in done.stderr
    told_lines = [line for line in done.stderr.splitlines() if "recipe:" not in line]
    assert max(map(len, told_lines)) <= 80

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
    again = command(config)
    assert again.exception is None
    assert "nothing to do" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
    other = command(config, "--num-heads", "2", "--budget", "70steps")
    assert isinstance(other.exception, SpecpipeError)
    assert other.exception.exit_code == 2
    assert "num_heads: 3 -> 2" in str(other.exception)
    assert "budget: '64steps' -> '70steps'" in str(other.exception)


def test_a_search_of_a_version_with_other_defaults_goes_on_with_its_own(
    make_search: MakeSearch,
) -> None:
    config = make_search()
    assert command(config).exception is None
    out = Path(config.out)
    plan = json.loads((out / "plan.json").read_text())
    for part in ("config", "recipe"):
        assert plan[part]["schedule"] == "wsd"
        plan[part]["schedule"] = "cosine"
    for rung in plan["rungs"]:
        # A version without these had no such trials.
        del rung["short_run"], rung["has_middle"]
    del plan["pass_steps"]
    plan["rungs"][1]["num_trials"] = 3
    (out / "plan.json").write_text(json.dumps(plan))
    (out / "tune.json").unlink()
    last = out / "trials" / "000-rung-2"
    shutil.rmtree(last)
    again = command(config)
    assert again.exception is None, again.stderr
    assert json.loads((last / "config.json").read_text())["schedule"] == "cosine"
    assert len(json.loads((out / "tune.json").read_text())["trials"]) == 4


def test_trials_are_chosen_by_one_half_of_the_prompts_and_measured_on_the_other(
    make_search: MakeSearch, whole: Path
) -> None:
    material = Material.open(make_search())
    chosen, back = (
        {ref.prompt_id for ref in half} for half in (material.chosen_by, material.held_back)
    )
    assert chosen
    assert back
    assert not chosen & back
    result = json.loads((whole / "tune.json").read_text())
    assert result["num_chosen_by"] == len(material.chosen_by)
    row = json.loads((whole / "trials/000-rung-1/metrics.jsonl").read_text().splitlines()[0])
    assert row["eval"]["num_samples"] == len(material.chosen_by)


@pytest.mark.slow
def test_killed_anywhere_a_search_ends_with_the_same_result(
    make_search: MakeSearch, whole: Path
) -> None:
    broken = make_search()
    moments = ["write:1", "write:30", "step:7", "write:60", "step:13", "none"]
    file = Path(f"{broken.out}.json")
    file.write_text(broken.model_dump_json(exclude_unset=True))
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.tune.tune_killed", str(file), *moments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [*map(int, done.stdout.split())] == [-signal.SIGKILL] * 5 + [0], done.stderr
    assert files(whole) == files(broken.out)


@pytest.mark.slow
def test_sigterm_saves_and_the_search_goes_on_to_the_same_result(
    make_search: MakeSearch, whole: Path
) -> None:
    stopped = make_search()
    for moment in (2, 20, 28):
        asked: list[int] = []

        def stop_once(step: int, moment: int = moment, asked: list[int] = asked) -> None:
            if step >= moment and not asked:
                asked.append(step)
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(UnfinishedError, match="SIGTERM") as raised:
            search(stopped, stop_once)
        assert raised.value.exit_code == 5
    search(stopped)
    assert files(whole) == files(stopped.out)


def test_a_trial_that_diverges_counts_as_nothing(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_search(budget="24steps", max_trials=3)
    trials = [{"learning_rate": rate} for rate in (1e-4, 1e30, 3e-3)]
    monkeypatch.setattr(planning, "trial_settings", lambda *_, **__: trials)
    result = search(config)
    assert [trial.scores[0].tau > 0 for trial in result.trials] == [True, False, True]
    assert result.best != 1


def test_the_time_of_a_search_counts_over_its_runs(make_search: MakeSearch) -> None:
    config = make_search(budget="1h")

    def stop(step: int) -> None:
        # Four runs of four steps are done, and the recipe's of twelve.
        if step >= 30:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(UnfinishedError):
        search(config, stop)
    out = Path(config.out)
    plan = TunePlan.model_validate_json((out / "plan.json").read_text())
    assert plan.seconds_per_step is not None
    assert [(rung.steps, rung.num_trials) for rung in plan.rungs] == [(4, 4), (12, 4)]
    (out / "clock.json").write_text('{"seconds": 3600}')
    result = search(config)
    assert result.is_cut_short
    assert len(result.rungs) == 1
    assert result.run == f"trials/{result.kept:03}-rung-1"
    assert (out / result.run / "best").exists()
    assert search(config).did_nothing


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": "5steps"}, "give --budget 12steps or more"),
        ({"budget": "0.001s"}, "give a larger --budget"),
        ({"eval_tokens": 1}, "held-out samples are too few"),
    ],
)
def test_what_cannot_be_searched_says_what_would_do(
    make_search: MakeSearch, changes: dict[str, Any], words: str
) -> None:
    config = make_search(**changes)
    done = command(config)
    assert isinstance(done.exception, SpecpipeError)
    assert done.exception.exit_code in (2, 3)
    assert words in str(done.exception)
    assert not (Path(config.out) / "plan.json").exists()


@pytest.mark.parametrize(
    ("file", "value", "words"),
    [
        ("config.json", {}, "holds a training run"),
        ("dump.json", {}, "holds a dump"),
        ("plan.json", {"recipes": {"eagle3": {}}}, "holds a search of specpipe choose"),
    ],
)
def test_the_folder_of_another_output_is_no_place_for_a_search(
    make_search: MakeSearch, file: str, value: dict[str, Any], words: str
) -> None:
    config = make_search()
    Path(config.out).mkdir()
    (Path(config.out) / file).write_text(json.dumps(value))
    done = command(config)
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)


def test_a_search_s_folder_is_no_place_for_a_run(whole: Path, make_search: MakeSearch) -> None:
    config = TrainConfig(dump=make_search().dump, out=str(whole))
    with pytest.raises(ConfigError, match="holds a search of specpipe tune or choose"):
        run(config)
    assert not (whole / "config.json").exists()


def test_a_complete_search_is_of_its_dump_and_writes_what_is_missing(
    whole: Path, make_search: MakeSearch, dump: Path, tmp_path: Path
) -> None:
    config = make_search()
    out = Path(config.out)
    shutil.copytree(whole, out)
    for name in ("train.yaml", "tune.html"):
        (out / name).unlink()
    assert command(config).exception is None
    assert files(out) == files(whole)
    assert (out / "tune.html").exists()
    other = config.model_copy(update={"eval_dump": str(dump)})
    done = command(other)
    assert isinstance(done.exception, IdentityError)
    assert "holds a complete search of another dump" in str(done.exception)
    # The same dump, elsewhere.
    shutil.copytree(dump, tmp_path / "moved")
    assert search(config.model_copy(update={"dump": str(tmp_path / "moved")})).did_nothing


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("plan.json", {"rungs": []}),
        ("plan.json", {"trials": []}),
        ("plan.json", {"trials": [{"learning_rate": -1}] * 4}),
        ("plan.json", {"recipe": {}}),
        ("plan.json", {"trials": [{"learning_rate": 1e-3}, {"head_decay": 0.5}] * 2}),
        (
            "plan.json",
            {"rungs": [{"steps": 4, "num_trials": 4, "short_run": {"rate_times": 1e308}}]},
        ),
        (
            "plan.json",
            {
                "rungs": [
                    {"steps": 4, "num_trials": 4, "short_run": {"settings": {"warmup_ratio": "x"}}}
                ]
            },
        ),
        ("clock.json", {"seconds": 10**400}),
        ("tune.json", {"rungs": []}),
        ("tune.json", {"trials": []}),
        ("tune.json", {"kept": 99}),
        ("tune.json", {"best": -1}),
        ("tune.json", {"run": "/etc"}),
        ("tune.json", {"run": "trials/../.."}),
        ("tune.json", {"searched": ["learning_rate", "head_decay"]}),
    ],
)
def test_a_damaged_file_of_a_search_is_named(
    whole: Path, make_search: MakeSearch, file: str, changes: dict[str, Any]
) -> None:
    config = make_search()
    out = Path(config.out)
    out.mkdir()
    for name in ("plan.json", "clock.json", "tune.json"):
        if name != "tune.json" or file == name:
            (out / name).write_bytes((whole / name).read_bytes())
    value = json.loads((out / file).read_bytes())
    (out / file).write_text(json.dumps(value | changes))
    done = command(config)
    assert isinstance(done.exception, SpecpipeError), done.exception
    assert done.exception.exit_code == 4
    assert file in str(done.exception)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"seconds": NaN}'])
def test_a_clock_that_is_damaged_may_be_removed(make_search: MakeSearch, text: str) -> None:
    config = make_search()
    Path(config.out).mkdir()
    (Path(config.out) / "clock.json").write_text(text)
    done = command(config)
    assert isinstance(done.exception, IntegrityError)
    assert "clock.json holds no time; remove it" in str(done.exception)


@pytest.mark.parametrize("tau", [-5.0, 1e300, 3.5])
def test_a_score_that_cannot_be_is_named(whole: Path, make_search: MakeSearch, tau: float) -> None:
    config = make_search()
    out = Path(config.out)
    shutil.copytree(whole, out)
    (out / "tune.json").unlink()
    score = out / "trials" / "000-rung-1" / "score.json"
    score.write_text(json.dumps(json.loads(score.read_text()) | {"tau": tau}))
    done = command(config)
    assert isinstance(done.exception, IntegrityError)
    assert "no tau with its interval" in str(done.exception)


def test_a_trial_whose_figures_and_weights_are_gone_is_trained_again(
    whole: Path, make_search: MakeSearch
) -> None:
    config = make_search()
    out = Path(config.out)
    shutil.copytree(whole, out)
    for name in ("tune.json", "trials/003-rung-1/score.json", "trials/003-rung-1/result.json"):
        (out / name).unlink()
    search(config)
    assert files(out) == files(whole)


def test_what_a_stopped_search_spent_before_its_first_trial_counts(
    make_search: MakeSearch,
) -> None:
    config = make_search(budget="1h")
    out = Path(config.out)

    def stop(step: int) -> None:
        raise UnfinishedError("stopped")

    with pytest.raises(UnfinishedError):
        search(config, stop)
    assert not (out / "plan.json").exists()
    assert json.loads((out / "clock.json").read_text())["seconds"] > 0
