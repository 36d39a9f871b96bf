"""Options through whole runs: stopped in the middle, each goes on bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.errors import UnfinishedError
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import latest_checkpoint
from specpipe.stages.train.run import run
from tests.train.conftest import MakeConfig, MakeDump, read_metrics, same_run

SHORT: dict[str, Any] = {"max_steps": 4, "eval_every": 2, "pack_tokens": 110}
RECOMPUTED = {"activation_checkpointing": True, "embedding_on_cpu": True}

OPTIONS: list[dict[str, Any]] = [
    {"dtype": "bfloat16", "lambda_scope": "token"},
    {"head_weights": "survival", "loss": "lk_hybrid=0.6,ce=0.3,tv=0.1"},
    {"head_weights": "survival", "lambda_source": "exact", "logits": "topk:8"},
    {"head_weights": "dpace", "loss": "dspark"},
]


def train(config: TrainConfig) -> list[float]:
    """The steps' losses."""
    run(config)
    return [row["draft_loss"] for row in read_metrics(config.out) if "eval" not in row]


def train_half(config: TrainConfig) -> None:
    for _ in range(2):
        with pytest.raises(UnfinishedError):
            run(config.model_copy(update={"time_limit": 1e-6}))
    path = latest_checkpoint(Path(config.out))
    assert path is not None
    assert load_checkpoint(path).state.step == 2


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_count_and_go_on_bit_for_bit(
    options: dict[str, Any], make_config: MakeConfig, make_dump: MakeDump, tmp_path: Path
) -> None:
    settings = SHORT | options
    if logits := settings.pop("logits", None):
        settings["dump"] = str(make_dump(logits=logits))
    whole = make_config(out=str(tmp_path / "whole"), **settings)
    losses = train(whole)
    stopped = make_config(out=str(tmp_path / "stopped"), **settings)
    train_half(stopped)
    run(stopped)
    same_run(Path(whole.out), Path(stopped.out))
    for name in options.keys() - {"logits"}:
        others = {n: value for n, value in settings.items() if n != name}
        assert train(make_config(out=str(tmp_path / name), **others)) != losses, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_options_that_save_memory_may_change_and_change_nothing(
    dtype: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    whole, stopped = (
        make_config(out=str(tmp_path / name), dtype=dtype, **SHORT) for name in ("whole", "stopped")
    )
    run(whole)
    train_half(stopped.model_copy(update=RECOMPUTED))
    run(stopped)
    same_run(Path(whole.out), Path(stopped.out))
