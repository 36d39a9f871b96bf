"""Tiny P-EAGLE drafters in training, and their artifacts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.settings.stages import DumpConfig, ExportConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run as dump_run
from specpipe.stages.export.run import run as export
from specpipe.stages.train.run import run as train
from tests.validate.small import Trained, save_target, write_samples

MakeTraining = Callable[..., TrainConfig]


def training(dump: Path, out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "dump": str(dump),
        "out": str(out),
        "drafter": "peagle",
        "num_heads": 4,
        "max_steps": 2,
        "eval_every": 2,
        "held_out_fraction": 0.3,
        "draft_vocab_size": 64,
        "batch_tokens": 400,
        "learning_rate": 1e-2,
        "mask_token": 2,
        "device": "cpu",
    }
    return TrainConfig(**(settings | changes))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """20 samples of two spans, a third of them held out; no text holds the tokens 0 to 2."""
    root = tmp_path_factory.mktemp("peagle")
    target = save_target(root / "target")
    data = write_samples(root / "data.jsonl", 20)
    config = DumpConfig(target=str(target), data=(str(data),), out=str(root / "dump"), backend="hf")
    dump_run(config)
    train(training(root / "dump", root / "run"))
    return Trained(target, root / "dump", root / "run")


@pytest.fixture(scope="session")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export's folder of files; do not write into it."""
    out = tmp_path_factory.mktemp("exported")
    export(ExportConfig(checkpoint=str(trained.run), out=str(out), validation=("structure",)))
    return out / "checkpoint"
