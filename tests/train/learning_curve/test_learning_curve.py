"""`specpipe train --learning-curve`: shares of a run, stopped and resumed, shown and told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import ConfigError, IntegrityError, UnfinishedError
from specpipe.schemas.settings.recipe import Facts, resolve
from specpipe.schemas.settings.stages import ReportConfig
from specpipe.stages.report.run import run as report
from specpipe.stages.train.learning_curve.shares import SHARES, share_config
from specpipe.stages.train.run import run
from tests.train.conftest import MakeConfig

SETTINGS = {"max_steps": 8, "eval_every": 4, "learning_curve": True}


def train(make_config: MakeConfig, tmp_path: Path, *flags: str, **changes: Any) -> Result:
    """By the command line, in this process."""
    file = tmp_path / "train.yaml"
    config = make_config(**SETTINGS | changes)
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    return CliRunner().invoke(specpipe, ["train", "--config", str(file), *flags, "--json"])


def test_shares_are_trained_beside_the_run_and_told(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    first = train(make_config, tmp_path, out=str(tmp_path / "run"))
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout.splitlines()[-1])
    curve = told["learning_curve"]
    assert [point["data_fraction"] for point in curve["points"]] == [0.125, 0.25, 0.5, 1.0]
    # As many passes over each.
    assert [point["num_steps"] for point in curve["points"]] == [1, 2, 4, 8]
    tokens = [point["num_tokens"] for point in curve["points"]]
    assert tokens == sorted(tokens)
    assert tokens[-1] == told["recipe"]["num_tokens"]
    assert curve["points"][-1]["tau"] == told["best"]["replay_temperature_1"]["tau"][-1]
    assert curve["points"][0]["tau"] != curve["points"][-1]["tau"]
    # Random text of a random target: there is nothing to predict, and it says so.
    assert curve["answer"] == "open"
    assert "cannot tell: " in first.stderr
    run_folder = tmp_path / "run"
    assert json.loads((run_folder / "learning_curve.json").read_text()) == curve
    assert sorted(path.name for path in (run_folder / "curve").iterdir()) == [
        "0.125",
        "0.25",
        "0.5",
    ]
    assert not list((run_folder / "curve").rglob("*.safetensors"))
    # tau as the run went, by the tokens before it.
    assert [one["step"] for one in told["over_training"]] == [0, 4, 8]
    assert told["over_training"][0]["num_tokens"] == 0
    assert told["over_training"][-1]["num_tokens"] == told["num_tokens"]
    assert "tokens trained on" in first.stderr
    again = train(make_config, tmp_path, out=str(tmp_path / "run"))
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout.splitlines()[-1]) == told | {"did_nothing": True}


def test_a_share_whose_result_is_damaged_is_trained_again(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train(make_config, tmp_path, out=str(out)).exit_code == 0
    share, curve = out / "curve" / "0.5", (out / "learning_curve.json").read_bytes()
    result = (share / "result.json").read_text()
    damages: list[dict[str, Any]] = [
        {"num_tokens": 0},
        {"recipe": {}},
        {"recipe": None},
        {"untrained": {}},
        {"steps": -1},
    ]
    for damage in damages:
        (share / "result.json").write_text(json.dumps(json.loads(result) | damage))
        damaged = train(make_config, tmp_path, out=str(out))
        assert isinstance(damaged.exception, IntegrityError), damage
        assert "remove it and run the same command again" in str(damaged.exception)
    (share / "result.json").unlink()
    assert train(make_config, tmp_path, out=str(out)).exit_code == 0
    assert (out / "learning_curve.json").read_bytes() == curve
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "eval": 1}\n')
    assert isinstance(train(make_config, tmp_path, out=str(out)).exception, IntegrityError)


@pytest.mark.slow
def test_a_curve_that_is_stopped_goes_on_to_the_same_end(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    # Asked for afterwards: the run itself is not trained again.
    run(make_config(**SETTINGS | {"learning_curve": False, "out": broken}))
    num_stops = 0
    while isinstance(
        train(make_config, tmp_path, "--time-limit", "0.001", out=broken).exception, UnfinishedError
    ):
        num_stops += 1
        assert num_stops < 20
    # A step at a time, every share in its turn: the last step of each is its end.
    assert num_stops == (1 - 1) + (2 - 1) + (4 - 1)
    assert train(make_config, tmp_path, out=whole).exit_code == 0
    first, second = ((Path(out) / "learning_curve.json").read_bytes() for out in (whole, broken))
    assert first == second


@pytest.mark.parametrize(
    "given", [{"optimizer": "muon"}, {"optimizer": "muon", "batch_size": 2}, {"optimizer": "adamw"}]
)
def test_a_share_follows_the_recipe_where_the_command_leaves_it_open(
    given: dict[str, Any], make_config: MakeConfig, tmp_path: Path
) -> None:
    left_open = (
        {name: None for name in ("max_steps", "batch_tokens", "eval_every", "learning_rate")}
        | {"preset": "quick"}
        | given
    )
    config = make_config(**left_open)
    whole = run(config)
    assert whole.recipe is not None
    for share in SHARES:
        of_share = share_config(config, whole, share)
        assert of_share.data_fraction == share
        assert of_share.batch_tokens is None
        assert of_share.out == f"{config.out}/curve/{share:g}"
        # Smaller steps have smaller rates, and fewer steps of a pass a larger weight decay.
        assert of_share.learning_rate is of_share.muon_weight_decay is None
        assert resolve(of_share, Facts(32, 20, 1000, 500)).config.muon_weight_decay > 0
    # What the first command set stays, also where a later one does not say it.
    fixed = make_config(
        out=str(tmp_path / "fixed"), max_steps=6, batch_tokens=200, optimizer="muon"
    )
    whole = run(fixed)
    silent = make_config(out=fixed.out, **left_open)
    silent = silent.model_copy(update={"preset": "default"})
    of_share = share_config(silent, whole, 0.5)
    assert (of_share.batch_tokens, of_share.max_steps) == (200, 3)
    assert of_share.learning_rate == fixed.learning_rate


def test_a_share_that_began_goes_on_with_its_own_settings(make_config: MakeConfig) -> None:
    config = make_config(learning_rate=None, optimizer="muon", max_steps=4, eval_every=4)
    whole = run(config)
    assert whole.recipe is not None
    began = run(share_config(config, whole, 0.5))
    # By a version that did not record the width.
    recipe = whole.recipe.model_copy(update={"hidden_size": None})
    again = share_config(config, whole.model_copy(update={"recipe": recipe}), 0.5)
    assert run(again) == began.model_copy(update={"did_nothing": True})


def test_a_run_of_an_older_version_is_refused(make_config: MakeConfig) -> None:
    config = make_config(max_steps=2, eval_every=2)
    whole = run(config).model_copy(update={"recipe": None})
    with pytest.raises(ConfigError, match="older version"):
        share_config(config, whole, 0.5)


def test_the_page_shows_the_data(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(max_steps=4, eval_every=2)
    run(config)
    page = tmp_path / "page.html"
    settings = ReportConfig(run=config.out, out=str(page), samples=0)
    report(settings)
    assert "made without --learning-curve" in page.read_text()
    assert "Tokens per round over the tokens trained on" in page.read_text()
    points = [
        {"data_fraction": share, "num_tokens": round(8000 * share), "num_steps": 10, "tau": tau}
        | {"tau_low": tau - 0.02, "tau_high": tau + 0.02}
        for share, tau in ((0.25, 1.7), (0.5, 1.9), (1.0, 2.05))
    ]
    expected = [
        {"num_tokens": n, "tau": tau, "low": tau - 0.1, "high": tau + 0.1}
        for n, tau in ((16000, 2.15), (32000, 2.25))
    ]
    curve = {"num_draft_tokens": 3, "is_greedy": False, "points": points, "answer": "predicted"}
    curve |= {"expected": expected, "law": expected}
    (Path(config.out) / "learning_curve.json").write_text(json.dumps(curve))
    report(settings)
    text = page.read_text()
    assert "Tokens per round by the amount of data" in text
    assert "with twice the data (16,000 tokens) expect tau 2.15 [2.05, 2.25]" in text
    assert "2.250 (2.150 to 2.350), expected" in text


@pytest.mark.slow
def test_two_processes_train_the_shares_together(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(**SETTINGS)
    file = tmp_path / "train.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "specpipe"]
    command = [sys.executable, "-m", *torchrun, "train", "--config", str(file), "--json"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    curve = json.loads(ended.stdout.splitlines()[-1])["learning_curve"]
    assert [point["num_steps"] for point in curve["points"]] == [1, 2, 4, 8]
    # One process comes to the same, but for the rounding of sums.
    alone = train(make_config, tmp_path, out=str(tmp_path / "alone"))
    same = json.loads(alone.stdout.splitlines()[-1])["learning_curve"]
    for one, other in zip(curve["points"], same["points"], strict=True):
        assert one["num_tokens"] == other["num_tokens"]
        assert one["tau"] == pytest.approx(other["tau"], rel=1e-3)
