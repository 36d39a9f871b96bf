"""Tiny dumps to train on, made by the dump stage from a tiny random target."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpipe.schemas.settings.recipe import Facts, resolve
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.stages.dump.run import run as run_dump
from tests.papers import PAPERS
from tests.tiny_llama import save_tiny_llama

VOCAB = 128
FACTS = Facts(hidden_size=32, num_samples=50, num_tokens=1500, num_supervised=1200)
"""Of what the dump below has about."""


def resolved(config: TrainConfig) -> ResolvedTrainConfig:
    return resolve(config, FACTS).config


def save_target(folder: Path, seed: int, num_layers: int = 4) -> Path:
    return save_tiny_llama(folder, VOCAB, seed=seed, spread=0.2, num_hidden_layers=num_layers)


def write_data(path: Path, num: int, seed: int) -> Path:
    """Pretokenised rows from a sparse Markov chain, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    follows = np.random.default_rng(0).integers(0, VOCAB, (VOCAB, 3))
    lines = []
    for _ in range(num):
        ids = [int(rng.integers(VOCAB))]
        for _ in range(int(rng.integers(12, 40))):
            ids.append(int(follows[ids[-1], rng.integers(3)]))
        labels = [-100] * 4 + ids[4:]
        lines.append(
            json.dumps({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


MakeDump = Callable[..., Path]


def write_dump(
    folder: Path,
    target_seed: int = 0,
    data_seed: int = 0,
    num_samples: int = 60,
    num_target_layers: int = 4,
    **settings: Any,
) -> Path:
    """Root of a fresh dump in the folder."""
    target = save_target(folder / "target", target_seed, num_target_layers)
    data = write_data(folder / "data.jsonl", num_samples, data_seed)
    config = DumpConfig(
        target=str(target),
        data=(str(data),),
        out=str(folder / "dump"),
        backend="hf",
        device="cpu",
        shard_tokens=400,
        chunk_tokens=128,
        **settings,
    )
    run_dump(config)
    return folder / "dump"


@pytest.fixture(scope="session")
def make_dump(tmp_path_factory: pytest.TempPathFactory) -> MakeDump:
    """make_dump(target_seed=0, data_seed=0, num_samples=60, **settings): root of a fresh dump."""

    def make(**settings: Any) -> Path:
        return write_dump(tmp_path_factory.mktemp("dump"), **settings)

    return make


@pytest.fixture(scope="session")
def dump(make_dump: MakeDump) -> Path:
    """A dump that no test changes."""
    return make_dump()


MakeConfig = Callable[..., TrainConfig]


def config_of(**changes: Any) -> TrainConfig:
    """A run of a dozen steps with evaluations and checkpoints on the way; give `dump` and `out`."""
    settings: dict[str, Any] = {
        **PAPERS,
        "device": "cpu",
        "num_heads": 3,
        "draft_vocab_size": 64,
        "learning_rate": 3e-3,
        "max_steps": 12,
        "batch_tokens": 300,
        "eval_every": 4,
        "checkpoint_every": 3,
        "held_out_fraction": 0.2,
    }
    if "init_from" in changes:
        # The artifact decides about its norms.
        settings = {name: settings[name] for name in settings if "norm_" not in name}
    return TrainConfig(**(settings | changes))


@pytest.fixture
def make_config(dump: Path, tmp_path: Path) -> MakeConfig:
    """make_config(**changes): see `config_of`."""
    return partial(config_of, dump=str(dump), out=str(tmp_path / "run"))


def read_metrics(run: Path | str, *, timings: bool = False) -> list[dict[str, Any]]:
    """metrics.jsonl; its timings, which no two runs share, only when asked for."""
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    for row in rows if not timings else ():
        for name in ("seconds", "data_wait", "memory_mib"):
            row.pop(name, None)
    return rows


def same_run(first: Path, second: Path) -> None:
    """Assert that two runs are equal bit for bit."""
    assert read_metrics(first) == read_metrics(second)
    for name in ("latest", "best"):
        assert (first / name).read_text() == (second / name).read_text()
        one, other = (p / "checkpoints" / (p / name).read_text() for p in (first, second))
        for file in ("model.safetensors", "optimizer.safetensors", "vocab.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes(), file
