"""A tiny target, a dump of it with five layers, and a DFlash drafter trained on that."""

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
        "drafter": "dflash",
        "num_layers": 2,
        "num_heads": 4,
        "anchors": 9,
        "max_steps": 6,
        "eval_every": 3,
        "held_out_fraction": 0.3,
        "batch_tokens": 400,
        "learning_rate": 1e-2,
        "device": "cpu",
    }
    return TrainConfig(**(settings | changes))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """30 samples of two spans, a third of them held out."""
    root = tmp_path_factory.mktemp("dflash")
    target = save_target(root / "target")
    data = write_samples(root / "data.jsonl", 30)
    dump_run(
        DumpConfig(
            target=str(target),
            data=(str(data),),
            out=str(root / "dump"),
            backend="hf",
            layers=(1, 2, 3, 4, 5),
            shard_tokens=400,
        )
    )
    train(training(root / "dump", root / "run"))
    return Trained(target, root / "dump", root / "run")


@pytest.fixture(scope="session")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, its folder of files; do not write into it."""
    out = tmp_path_factory.mktemp("exported")
    export(ExportConfig(checkpoint=str(trained.run), out=str(out)))
    return out / "checkpoint"
