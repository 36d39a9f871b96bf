"""Checkpoints of strangers, whose every hash is right: what fits no drafter is refused by name."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.checkpoint import (
    DRAFTER_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    RESULT_FILE,
    STATE_FILE,
    TrainState,
)
from specpipe.stages.runs.pointers import latest_checkpoint
from specpipe.stages.train.run import run
from tests.train.conftest import MakeConfig

Tensors = Mapping[str, Tensor]


def seal(checkpoint: Path) -> None:
    """Give the checkpoint's state.json the hashes of the files as they are."""
    state = json.loads((checkpoint / STATE_FILE).read_bytes())
    state["files_sha256"] = {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        for name in state["files_sha256"]
    }
    del state["content_sha256"]
    sealed = TrainState.model_validate(state)
    (checkpoint / STATE_FILE).write_text(sealed.model_dump_json(), encoding="utf-8")


@pytest.fixture
def checkpoint(make_config: MakeConfig) -> Path:
    config = make_config(max_steps=1)
    run(config)
    (Path(config.out) / RESULT_FILE).unlink()
    found = latest_checkpoint(Path(config.out))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 10**7},
        {"num_layers": 0},
        {"num_attention_heads": 0},
        {"head_dim": 7},
        {"rope_parameters": {"rope_type": "\x1b[2J", "rope_theta": 1}},
        {"hidden_act": "__import__"},
        {"architecture": "other"},
        {"layer_type": "other"},
        {"aux_layers": []},
    ],
)
def test_a_shape_that_no_drafter_has(
    checkpoint: Path, make_config: MakeConfig, change: dict[str, Any]
) -> None:
    shape = json.loads((checkpoint / DRAFTER_FILE).read_bytes())
    (checkpoint / DRAFTER_FILE).write_text(json.dumps(shape | change), encoding="utf-8")
    seal(checkpoint)
    with pytest.raises(IntegrityError, match=f"checkpoint {checkpoint} "):
        run(make_config(max_steps=1))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (MODEL_FILE, lambda tensors: {name: t[:1].clone() for name, t in tensors.items()}),
        (MODEL_FILE, lambda tensors: tensors | {"other": torch.zeros(1)}),
        (OPTIMIZER_FILE, lambda tensors: tensors | {"other/exp_avg": torch.zeros(1)}),
    ],
)
def test_tensors_that_fit_no_drafter(
    checkpoint: Path, make_config: MakeConfig, file: str, change: Callable[[Tensors], Any]
) -> None:
    save_file(change(load_file(checkpoint / file)), checkpoint / file)
    seal(checkpoint)
    with pytest.raises(IntegrityError, match=f"checkpoint {checkpoint} "):
        run(make_config(max_steps=1))
