"""The spec-draft fine-tuning job: parsed, mapped to the stages, refused by field."""

import json
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.drafters.eagle3 import SWITCHES
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.job import parse_job
from specpipe.schemas.settings.recipe import Facts, resolve
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.schemas.settings.train import TrainConfig

SAMPLE = Path(__file__).parents[2] / "sample_data" / "job.json"


def body(**hyperparameters: Any) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(SAMPLE.read_text())
    job["method"]["spec_draft"]["hyperparameters"] |= hyperparameters
    return job


def test_the_sample_job_maps_to_the_stages() -> None:
    job = parse_job(body())
    dump = DumpConfig(out="out/dump", **job.dump_settings())
    assert (dump.target, dump.data) == (job.model, (job.training_file,))
    train = TrainConfig(dump="out/dump", out="out/run", **job.train_settings())
    assert (train.loss, train.num_heads, train.batch_size) == ("lk_hybrid", 3, 8)
    assert (train.learning_rate, train.num_epochs, train.seed) == (0.0075, 1, 2214)


def norms(architecture: str) -> list[str]:
    settings = parse_job(body(architecture=architecture)).train_settings()
    train = TrainConfig(dump="out/dump", out="out/run", **settings)
    return [name for name in SWITCHES if getattr(train.drafter, name)]


def test_architectures_differ_in_what_newer_engines_alone_serve() -> None:
    assert norms("eagle3_original") == ["norm_before_residual", "norm_before_fc"]
    assert norms("eagle3") == ["norm_before_residual", "fc_norm", "norm_output"]


def test_without_a_context_length_the_target_decides_up_to_a_limit() -> None:
    settings = parse_job(body(context_length=512))
    assert settings.dump_settings()["context_length"] == 512
    assert settings.train_settings()["context_length"] == 512
    settings = parse_job(body(context_length=None))
    dump = DumpConfig(out="out/dump", **settings.dump_settings())
    assert (dump.context_length, dump.context_limit) == (None, 8192)
    assert "context_length" not in settings.train_settings()


@pytest.mark.parametrize("rate", [0.0075, 4e-4])
def test_the_rate_is_muons_and_is_used_as_given(rate: float) -> None:
    settings = parse_job(body(learning_rate=rate)).train_settings()
    train = TrainConfig(dump="out/dump", out="out/run", **settings)
    assert (train.optimizer, train.learning_rate) == ("muon", rate)
    assert resolve(train, Facts(64, 100, 10_000, 5000)).config.learning_rate == rate


def test_without_a_rate_it_is_that_of_the_recipe() -> None:
    settings = parse_job(body(learning_rate=None)).train_settings()
    train = TrainConfig(dump="out/dump", out="out/run", **settings)
    assert resolve(train, Facts(256, 10**5, 3_200_000, 10**6)).config.learning_rate == 3e-3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_decoding_heads": 8}, "num_decoding_heads"),
        ({"num_decoding_heads": 0}, "num_decoding_heads"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"warmup_ratio": 1}, "warmup_ratio"),
        ({"loss": {"type": "mse"}}, "loss.type"),
        ({"architecture": "medusa"}, "architecture"),
        ({"leraning_rate": 1}, "leraning_rate"),
    ],
)
def test_wrong_hyperparameters_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_job(body(**changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": ""}, "model"),
        ({"method": {"type": "sft"}}, "method.type"),
        ({"suffix": "../../etc"}, "suffix"),
        ({"validation_file": "x"}, "validation_file"),
        ({"seed": "1"}, "seed"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_job(body() | changes)
