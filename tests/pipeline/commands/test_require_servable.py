"""What plan, dump, train and export say of the engine, and refuse, before anything is spent."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run as dump
from specpipe.stages.target.vllm.support.families import ENVIRONMENT
from specpipe.stages.train.run import run as train
from tests.architectures import VOCAB, build
from tests.dump.conftest import write_lines

REFUSED = "by itself serves no EAGLE-3 drafters for Gemma3ForCausalLM"


def small_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    texts = [rng.integers(3, VOCAB, 24).tolist() for _ in range(20)]
    return [
        {"input_ids": ids, "attention_mask": [1] * 24, "labels": [-100] * 4 + ids[4:]}
        for ids in texts
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3, which vLLM serves with our plugin alone, its dump, and a run on that."""
    root = tmp_path_factory.mktemp("gemma3")
    build("gemma3").save_pretrained(root / "target")
    write_lines(root / "data.jsonl", small_rows())
    target, data = str(root / "target"), (str(root / "data.jsonl"),)
    dump(DumpConfig(target=target, data=data, out=str(root / "dump"), backend="hf", device="cpu"))
    settings = {"num_heads": 1, "max_steps": 1, "held_out_fraction": 0.3}
    train(TrainConfig(dump=str(root / "dump"), out=str(root / "run"), **settings))
    return root


@pytest.fixture(autouse=True)
def _not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(specpipe, list(map(str, arguments)), terminal_width=80)


def commands(runs: Path, out: Path) -> list[tuple[object, ...]]:
    from_data = ("--target", runs / "target", "--data", runs / "data.jsonl", "--backend", "hf")
    return [
        ("plan", *from_data),
        ("plan", runs / "dump"),
        ("dump", *from_data, "--out", out / "dump"),
        ("train", "--dump", runs / "dump", "--out", out / "run", "--max-steps", 1),
        ("export", "--checkpoint", runs / "run", "--out", out / "artifact"),
    ]


def test_a_target_that_is_not_served_is_refused_where_that_is_required(
    runs: Path, tmp_path: Path
) -> None:
    for command in commands(runs, tmp_path):
        found = call(*command, "--require-servable")
        assert isinstance(found.exception, ConfigError), (command, found.output)
        assert REFUSED in str(found.exception)
    assert not list(tmp_path.iterdir())


def test_else_each_command_warns_and_goes_on(runs: Path, tmp_path: Path) -> None:
    for command in commands(runs, tmp_path):
        found = call(*command)
        assert found.exit_code == 0, (command, found.output, found.exception)
        assert f"{ENVIRONMENT}=1" in found.stderr
        assert found.stderr.count("warning: vLLM ") == 1, command
    card = (tmp_path / "artifact" / "README.md").read_text(encoding="utf-8")
    assert f"{ENVIRONMENT}=1 vllm serve" in card


def test_nothing_is_said_where_the_plugin_is_asked_for(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, "Gemma3ForCausalLM")
    for command in commands(runs, tmp_path)[:3]:
        found = call(*command, "--require-servable")
        assert found.exit_code == 0, (command, found.exception)
        assert "warning" not in found.stderr


def test_plan_tells_programs_too(runs: Path) -> None:
    found = call("plan", runs / "dump", "--json")
    served = json.loads(found.stdout.splitlines()[-1])["servable"]
    assert (served["method"], served["how"], served["is_served"]) == ("eagle3", "plugin", False)


def test_a_target_that_cannot_be_served_is_refused_before_an_engine_starts(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a vLLM that the plugin is not tried with."""
    from specpipe.stages.target.vllm.support import servable

    monkeypatch.setattr(servable, "is_tested", lambda *_: False)
    levels = ("--validation", "structure,replay,serve")
    found = call("export", "--checkpoint", runs / "run", "--out", tmp_path / "artifact", *levels)
    assert isinstance(found.exception, ConfigError)
    assert "serves no EAGLE-3 drafters" in str(found.exception)
    assert "leave serve out of --validation" in str(found.exception)
    assert not (tmp_path / "artifact" / "checkpoint").exists()
