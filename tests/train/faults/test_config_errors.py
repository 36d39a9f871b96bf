"""Every setting refuses what it cannot be, by name, before the first step."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.pipeline.commands.train.options import train_config
from specpipe.schemas.errors import ConfigError, SpecpipeError
from specpipe.schemas.settings.train import PresetName, TrainConfig
from specpipe.stages.train.run import run
from tests.train.conftest import MakeConfig

COUNT: list[Any] = [0, -1, 1.5, "many", True, [], {}]
OPTIONAL_COUNT = COUNT
CHOICE: list[Any] = ["nonsense", 1, True, [], {}]
SWITCH: list[Any] = ["nonsense", 2, 0.5, None, [], {}]
POSITIVE: list[Any] = [0, -1.0, float("inf"), float("nan"), "much", True, [], {}]
SHARE: list[Any] = [-0.1, float("nan"), "half", True, [], {}]
PLACE: list[Any] = ["", "  ", 5, True, ["a"], {}]

REFUSED: dict[str, list[Any]] = {
    "dump": [*PLACE, None],
    "mix": ["x", {"a": 0}, {"a": -1}, {"a": "much"}, {"a": True}, {"": 1}, [1]],
    "layers": ["2,4", [], [1.5], [True], "x", 5],
    "out": [*PLACE, None],
    "drafter": [*(value for value in CHOICE if value != {}), {"kind": "none"}, {"kind": 3}],
    "loss": [
        *CHOICE,
        "kl=0",
        "kl=-1",
        "kl=x",
        "kl=1,kl=2",
        "kl=1,hinge=1",
        {"kl": True},
        {"kl": 0},
    ],
    "eta": POSITIVE,
    "lambda_scope": CHOICE,
    "lambda_source": CHOICE,
    "num_heads": [*COUNT, 8],
    "head_decay": [*POSITIVE, 1.1],
    "head_weights": CHOICE,
    "dpace_smoothing": [*POSITIVE, 1.1],
    "state_loss": SHARE,
    "draft_vocab_size": OPTIONAL_COUNT,
    "draft_vocab_by": CHOICE,
    "draft_vocab_file": PLACE,
    "init_from": PLACE,
    "warm_start": PLACE,
    "layer_type": CHOICE,
    "num_layers": [*COUNT, 9],
    "sliding_window": OPTIONAL_COUNT,
    "hidden_size": [*OPTIONAL_COUNT, 10**9],
    "num_attention_heads": [*OPTIONAL_COUNT, 10**9],
    "num_key_value_heads": [*OPTIONAL_COUNT, 10**9],
    "head_dim": [*OPTIONAL_COUNT, 10**9],
    "rope_theta": POSITIVE,
    "intermediate_size": [*OPTIONAL_COUNT, 10**11],
    "fresh_layer": SWITCH,
    "norm_before_residual": SWITCH,
    "norm_before_fc": SWITCH,
    "fc_norm": SWITCH,
    "norm_output": SWITCH,
    "serve_anywhere": SWITCH,
    "data_fraction": [*SHARE, 0, 1.1],
    "learning_curve": SWITCH,
    "learning_rate": POSITIVE,
    "optimizer": CHOICE,
    "muon_learning_rate": POSITIVE,
    "muon_momentum": [*SHARE, 1],
    "weight_decay": SHARE,
    "muon_weight_decay": SHARE,
    "adam_betas": [[0.9], [0.9, 1.0], [0.9, -0.1], [0.9, 0.9, 0.9], "0.9", [True, 0.9], 0.9],
    "warmup_ratio": [*SHARE, 1],
    "schedule": CHOICE,
    "wsd_decay": [*POSITIVE, 1.1],
    "max_grad_norm": POSITIVE,
    "num_epochs": COUNT,
    "max_steps": OPTIONAL_COUNT,
    "batch_tokens": COUNT,
    "batch_size": OPTIONAL_COUNT,
    "pack_tokens": OPTIONAL_COUNT,
    "shard": SWITCH,
    "context_length": [*OPTIONAL_COUNT, 1],
    "loss_chunk_mib": COUNT,
    "held_out_fraction": [*SHARE, 1],
    "eval_dump": PLACE,
    "eval_every": OPTIONAL_COUNT,
    "eval_tokens": COUNT,
    "checkpoint_every": OPTIONAL_COUNT,
    "keep_checkpoints": COUNT,
    "preverify": CHOICE,
    "prefetch_mib": [-1, 1.5, "much", True, [], {}],
    "dtype": CHOICE,
    "attention": CHOICE,
    "activation_checkpointing": SWITCH,
    "embedding_on_cpu": SWITCH,
    "device": [5, True, [], {}, None],
    "seed": [-1, 2**63, 1.5, "x", True, [], {}],
    "log": ["syslog", ["wandb", "wandb"], [1], {"wandb": 1}, 5],
    "log_project": ["", 5, True, [], {}, None],
    "log_name": ["", 5, True, [], {}],
    "early_stop": OPTIONAL_COUNT,
    "time_limit": POSITIVE,
    "require_servable": SWITCH,
    "preset": ["fastest", 5, True, ["best"]],
}


def read(tmp_path: Path, values: dict[str, Any]) -> TrainConfig:
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump({"dump": "d", "out": "o", **values}))
    return train_config(file, {})


def test_every_setting_is_in_the_table() -> None:
    assert REFUSED.keys() == TrainConfig(dump="d", out="o").flat().keys()


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in REFUSED.items() for value in values]
)
def test_a_bad_value_in_the_file_is_refused_by_name(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"train\.yaml.*{field}|preset") as raised:
        read(tmp_path, {field: value})
    assert raised.value.exit_code == 2


_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(field=st.sampled_from(sorted(TrainConfig.model_fields)), value=_VALUES)
def test_whatever_a_file_holds_is_taken_or_refused_by_name(field: str, value: Any) -> None:
    try:
        config = train_config(None, {"dump": "d", "out": "o", field: value})
    except ConfigError as error:
        refused = str(error)
    else:
        refused = field
        assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert field in refused.replace("-", "_")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"norm_before_fc": True, "fc_norm": True}, "norm_before_fc and fc_norm"),
        ({"serve_anywhere": True, "norm_output": True}, "serve_anywhere excludes norm_output"),
        ({"serve_anywhere": True, "fc_norm": True}, "serve_anywhere excludes fc_norm"),
        ({"serve_anywhere": True, "layer_type": "qwen3"}, "serve_anywhere excludes layer_type"),
        ({"serve_anywhere": True, "num_layers": 2}, "serve_anywhere excludes num_layers 2"),
        ({"sliding_window": 2, "num_heads": 3}, "sliding_window 2"),
        ({"init_from": "a", "draft_vocab_size": 5}, "init_from"),
        ({"init_from": "a", "warm_start": "b"}, "warm_start"),
        ({"draft_vocab_file": "a", "draft_vocab_size": 5}, "draft_vocab_file"),
    ],
)
def test_settings_that_exclude_each_other(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, values)


IDLE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"muon_learning_rate": 0.1}, {"optimizer": "muon"}, "is for optimizer muon"),
    ({"muon_momentum": 0.95}, {"optimizer": "muon"}, "is for optimizer muon"),
    ({"wsd_decay": 0.2}, {"schedule": "wsd"}, "is for schedule wsd"),
    ({"eta": 3.0}, {"loss": "lk_hybrid=1,ce=1"}, "is for loss lk_hybrid"),
    ({"lambda_scope": "token"}, {"loss": "lk_hybrid"}, "is for loss lk_hybrid"),
    ({"lambda_source": "exact"}, {"loss": "lk_hybrid"}, "is for loss lk_hybrid"),
    ({"lambda_source": "exact"}, {"lambda_scope": "head"}, "lambda_scope head"),
    ({"dpace_smoothing": 0.5}, {"head_weights": "dpace"}, "is for head_weights dpace"),
    ({"num_epochs": 10}, {"max_steps": None}, "is for runs without max_steps"),
    ({"batch_tokens": 8192}, {"batch_size": None}, "is for steps without batch_size"),
    ({"held_out_fraction": 0.05}, {"eval_dump": None}, "is for runs without eval_dump"),
    ({"log_project": "p"}, {"log": ("wandb",)}, "is for runs with log"),
    ({"log_name": "n"}, {"log": ("wandb",)}, "is for runs with log"),
    ({"num_layers": 1}, {"init_from": None}, "is for drafters without init_from"),
    ({"fc_norm": False}, {"init_from": None}, "is for drafters without init_from"),
    ({"rope_theta": 1e4}, {"init_from": None}, "is for drafters without init_from"),
    ({"draft_vocab_by": "mass"}, {"init_from": None}, "is for draft vocabularies that are chosen"),
    (
        {"draft_vocab_by": "mass"},
        {"draft_vocab_file": None},
        "is for draft vocabularies that are chosen",
    ),
]
"""A flag, what makes it count, and what is said where it does not."""
WITHOUT: dict[str, Any] = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "loss": "kl",
    "lambda_scope": "token",
    "head_weights": "survival",
    "max_steps": 5,
    "batch_size": 8,
    "eval_dump": "e",
    "log": None,
    "init_from": "a",
    "draft_vocab_file": "f",
}
"""In their place, what makes it idle."""


@pytest.mark.parametrize(("flag", "needed", "words"), IDLE, ids=str)
def test_a_flag_that_has_no_effect_is_refused(
    flag: dict[str, Any], needed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    file = {"dump": "d", "out": "o"}
    idle = {name: WITHOUT[name] for name in needed}
    [name] = flag
    with pytest.raises(ConfigError, match=rf"^{name} .*{words}.*leave --") as raised:
        train_config(None, file | idle | flag)
    assert raised.value.exit_code == 2
    train_config(None, file | needed | flag)
    # A file may serve several runs.
    assert read(tmp_path, flag | {n: v for n, v in idle.items() if v}) is not None


def test_decay_is_for_weights_of_heads() -> None:
    flags = {"dump": "d", "out": "o", "head_decay": 0.7}
    with pytest.raises(ConfigError, match="head_decay is for head_weights static and survival"):
        train_config(None, flags | {"head_weights": "dpace"})
    assert train_config(None, flags | {"head_weights": "survival"}).head_decay == 0.7


@pytest.mark.parametrize("kind", ["mtp", "eagle1", "medusa"])
def test_a_way_to_choose_a_draft_vocabulary_is_for_drafters_that_have_one(kind: str) -> None:
    flags = {"dump": "d", "out": "o", "drafter": kind, "draft_vocab_by": "count"}
    with pytest.raises(ConfigError, match="draft_vocab_by is for draft vocabularies"):
        train_config(None, flags)


def test_shard_is_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"dump": "d", "out": "o", "shard": True}
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match="shard is for the processes of torchrun"):
        train_config(None, flags)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert train_config(None, flags).shard


@pytest.mark.parametrize("preset", get_args(PresetName))
def test_neither_presets_nor_a_runs_own_settings_are_refused(preset: str, tmp_path: Path) -> None:
    flags = {"dump": "d", "out": "o", "preset": preset, "loss": "kl", "batch_size": 8}
    config = train_config(None, flags)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert train_config(tmp_path / "config.json", {}) == config


NOT_OF_THIS_DUMP: dict[str, Any] = {
    "out": "s3://bucket/run",
    "layers": (1, 77),
    "draft_vocab_size": 1000,
    "draft_vocab_file": "/nowhere/d2t.safetensors",
    "init_from": "/nowhere/artifact",
    "warm_start": "/nowhere/target",
    "mix": {"/nowhere/dump": 1.0},
    "eval_dump": "/nowhere/dump",
    "context_length": 4,
    "held_out_fraction": 0.0,
    "device": "meta",
    "num_key_value_heads": 3,
    "head_dim": 7,
    "dump": "/nowhere/dump",
}


@pytest.mark.parametrize("field", NOT_OF_THIS_DUMP)
def test_what_does_not_fit_the_dump_is_refused_before_the_first_step(
    field: str, make_config: MakeConfig
) -> None:
    changes = {field: NOT_OF_THIS_DUMP[field]}
    if "draft_vocab_file" in changes or "init_from" in changes:
        changes["draft_vocab_size"] = None
    config = make_config(**changes)
    with pytest.raises(SpecpipeError) as raised:
        run(config)
    assert raised.value.exit_code in (2, 3)
    said = str(raised.value)
    value = changes[field]
    known_by = [*(field.replace("_", c) for c in "_- "), *(str(v) for v in _parts(value))]
    assert any(name in said for name in known_by), said
    assert not (Path(config.out) / "metrics.jsonl").exists()
    assert not (Path(config.out) / "config.json").exists()


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value)
    return list(value) if isinstance(value, tuple) else [value]


def test_a_device_of_another_machine(make_config: MakeConfig) -> None:
    for device in ("", "gpu", "cuda:99", "vulkan"):
        with pytest.raises(ConfigError, match="device"):
            run(make_config(device=device))
