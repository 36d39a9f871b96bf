"""Jobs that are wrong are refused before anything runs, with a message that names the cause."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import ConfigError, SpecpipeError, UnfinishedError
from tests.pipeline.job.conftest import MakeJob


def refused(job: Path, *more: str) -> str:
    """What is said of a job that is refused."""
    arguments = ["run", str(job), "--out", str(job.parent / "out"), *more]
    found = CliRunner().invoke(specpipe, arguments)
    assert isinstance(found.exception, SpecpipeError), found.output
    assert found.exception.exit_code == 2
    assert not (job.parent / "out").exists()
    return str(found.exception)


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"training_file": ""}, "training_file"),
    ({"method": {"type": "dpo"}}, "method.type"),
    ({"method": {"type": "spec-draft", "dpo": {}}}, "method.dpo"),
    ({"validation_file": "file-1"}, "validation_file"),
    ({"suffix": "../../../etc"}, "suffix"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"hyperparameters": {"n_epochs": 10**30}}, "n_epochs"),
    ({"hyperparameters": {"batch_size": 2**31}}, "batch_size"),
    ({"hyperparameters": {"context_length": 2**31}}, "context_length"),
    ({"hyperparameters": {"num_decoding_heads": 8}}, "num_decoding_heads"),
    ({"hyperparameters": {"num_decoding_heads": True}}, "num_decoding_heads"),
    ({"hyperparameters": {"batch_size": 0}}, "batch_size"),
    ({"hyperparameters": {"learning_rate": float("nan")}}, "learning_rate"),
    ({"hyperparameters": {"learning_rate": "fast"}}, "learning_rate"),
    ({"hyperparameters": {"warmup_ratio": 1.5}}, "warmup_ratio"),
    ({"hyperparameters": {"max_grad_norm": 0}}, "max_grad_norm"),
    ({"hyperparameters": {"context_length": 1}}, "context_length"),
    ({"hyperparameters": {"n_epochs": 0.5}}, "n_epochs"),
    ({"hyperparameters": {"architecture": "medusa"}}, "architecture"),
    ({"hyperparameters": {"loss": {"type": "mse"}}}, "loss.type"),
    ({"hyperparameters": {"temperature": 1.0}}, "temperature"),
]


@pytest.mark.parametrize(("changes", "name"), BROKEN)
def test_a_wrong_field_is_named(make_job: MakeJob, changes: dict[str, Any], name: str) -> None:
    assert name in refused(make_job(**changes))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000])
def test_what_is_no_job_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    assert "job" in refused(tmp_path / "job.json")


def test_a_job_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "job.json" in refused(tmp_path / "job.json")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dump: {target: elsewhere}", "dump.target"),
        ("train: {seed: 3}", "train.seed"),
        ("train: {lerning_rate: 3}", "lerning_rate"),
        ("export: {validation: [prayer]}", "validation"),
        ("deploy: {}", "deploy"),
        ("dump: 3", "dump"),
    ],
)
def test_further_settings_are_checked_first(make_job: MakeJob, text: str, name: str) -> None:
    job = make_job()
    config = job.with_name("more.yaml")
    config.write_text(text)
    assert name in refused(job, "--config", str(config))


def test_usage_is_explained(tmp_path: Path) -> None:
    for arguments in ([], ["job.json"], ["job.json", "--status", str(tmp_path)]):
        found = CliRunner().invoke(specpipe, ["run", *arguments])
        assert isinstance(found.exception, ConfigError)
        assert "--status" in str(found.exception)
    found = CliRunner().invoke(specpipe, ["run", "--status", str(tmp_path)])
    assert "there is no job" in str(found.exception)


def test_a_url_is_no_folder_of_jobs(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["run", str(job), "--out", "s3://key:secret@bucket/job"],
        ["run", "--status", "s3://bucket/job"],
        ["serve-api", "--data", "s3://bucket/api"],
    ):
        found = CliRunner().invoke(specpipe, arguments)
        assert isinstance(found.exception, ConfigError)
        assert "s3://bucket/" in str(found.exception)
        assert "local disk" in str(found.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"job.json", "training.jsonl"}


@pytest.mark.parametrize("name", ["README.md", "metrics.jsonl", "training.csv"])
def test_the_folder_that_a_job_lies_in_is_no_new_one(
    make_job: MakeJob, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    job = make_job().rename(out / "job.json")
    (out / name).write_text("mine")
    before = job.read_bytes()
    found = CliRunner().invoke(specpipe, ["run", str(job), "--out", str(out)])
    assert isinstance(found.exception, ConfigError)
    assert f"{out} holds {name}, which no job wrote" in str(found.exception)
    (out / name).unlink()
    arguments = ["run", str(job), "--out", str(out), "--time-limit", "0"]
    found = CliRunner().invoke(specpipe, arguments)
    assert isinstance(found.exception, UnfinishedError)
    assert job.read_bytes() == before
    job.write_text(make_job(seed=5).read_text())
    (out / "job_state.json").unlink()
    found = CliRunner().invoke(specpipe, ["run", str(make_job()), "--out", str(out)])
    assert "another job" in str(found.exception)


def test_a_folder_with_something_else_is_left_alone(make_job: MakeJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    found = CliRunner().invoke(specpipe, ["run", str(make_job()), "--out", str(out)])
    assert "thesis.txt" in str(found.exception)
    assert json.loads(json.dumps([p.name for p in out.iterdir() if p.name != ".lock"])) == [
        "thesis.txt"
    ]
