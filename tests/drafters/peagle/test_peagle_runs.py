"""What the suite of all architectures leaves out: artifacts of others, the card, ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specpipe.stages.train.run import run as train
from tests.drafters.peagle.conftest import training
from tests.pipeline.in_process import specpipe
from tests.train.conftest import read_metrics
from tests.validate.small import Trained

ROOT = Path(__file__).parents[3]


def test_the_card_says_how_it_is_served(exported: Path) -> None:
    """T12 and T13."""
    card = (exported.parent / "README.md").read_text()
    assert '"method": "eagle3"' in card
    assert '"parallel_drafting": true' in card


def test_an_embedding_that_was_trained_is_replayed_and_not_gone_on_from(
    trained: Trained, exported: Path, tmp_path: Path
) -> None:
    """speculators trains all rows of it."""
    flat = tmp_path / "flat"
    assert specpipe("convert", exported, "--format", "peagle", "--out", flat).returncode == 0
    config = json.loads((flat / "config.json").read_text())
    assert config["ptd_token_id"] == 2
    tensors = load_file(flat / "model.safetensors")
    assert tensors["mask_hidden"].shape == (1, 1, 3 * 32)
    tensors["embed_tokens.weight"] += 0.1 * torch.randn_like(tensors["embed_tokens.weight"])
    save_file(tensors, flat / "model.safetensors", {"format": "pt"})
    replayed = specpipe("validate", flat, "--dump", trained.dump)
    assert replayed.returncode == 0, replayed.stderr
    flags = ["--drafter", "peagle", "--num-heads", "4", "--held-out-fraction", "0.3"]
    further = specpipe("train", "--dump", trained.dump, "--out", tmp_path / "run",
                       "--init-from", flat, *flags)  # fmt: skip
    assert further.returncode == 2
    assert "its embedding is its own" in further.stderr


@pytest.mark.slow
def test_two_ranks_choose_the_same_rows_as_one_process(trained: Trained, tmp_path: Path) -> None:
    config = training(trained.dump, tmp_path / "one", anchors=5, pack_tokens=100)
    train(config)
    settings = config.model_copy(update={"out": str(tmp_path / "two")})
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    flags = [
        *("--dump", settings.dump, "--out", settings.out, "--drafter", "peagle", "--anchors", "5"),
        *("--num-heads", "4", "--max-steps", "2", "--eval-every", "2", "--device", "cpu"),
        *("--held-out-fraction", "0.3", "--draft-vocab-size", "64", "--batch-tokens", "400"),
        *("--pack-tokens", "100", "--learning-rate", "0.01", "--mask-token", "2"),
    ]
    subprocess.run(
        [*ranks, "specpipe", "train", *flags],
        check=True, capture_output=True, timeout=600, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    alone, together = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for one, two in zip(alone, together, strict=True):
        if "draft_loss" in one:
            assert two["draft_loss"] == pytest.approx(one["draft_loss"], rel=1e-4)
