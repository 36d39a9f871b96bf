"""P-EAGLE through every stage, by the command line in this process."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pipeline.in_process import Ended, specpipe
from tests.train.conftest import read_metrics, write_dump

FLAGS: list[str | Path] = ["--device", "cpu", "--num-heads", "4", "--loss", "kl"]
FLAGS += ["--batch-tokens", "400", "--held-out-fraction", "0.2", "--anchors", "12"]
FLAGS += ["--eval-every", "4", "--checkpoint-every", "2", "--learning-rate", "0.002"]


def done(ended: Ended) -> Ended:
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.mark.slow
def test_it_is_trained_stopped_exported_converted_and_gone_on_from(tmp_path: Path) -> None:
    dump = write_dump(tmp_path)
    whole, run, out = (tmp_path / name for name in ("whole", "run", "out"))
    flags: list[str | Path] = ["--dump", dump, *FLAGS]
    fresh: list[str | Path] = [
        "--drafter",
        "peagle",
        "--num-layers",
        "2",
        "--draft-vocab-size",
        "64",
    ]
    steps = [*fresh, *flags, "--max-steps", "8"]
    done(specpipe("train", "--out", whole, *steps))
    stopped = specpipe("train", "--out", run, *steps, "--time-limit", "0.001")
    assert stopped.returncode == 5
    while stopped.returncode == 5:
        stopped = specpipe("train", "--out", run, *steps)
    done(stopped)
    assert read_metrics(run) == read_metrics(whole)
    rows = [row["eval"] for row in read_metrics(whole) if "eval" in row]
    assert rows[-1]["replay_temperature_1"]["tau"] > rows[0]["replay_temperature_1"]["tau"]

    done(specpipe("export", "--checkpoint", whole, "--out", out))
    validation = json.loads((out / "validation.json").read_text())
    assert validation["passed"]
    assert validation["replay"]["agreement"]["num_starts"] > 100
    card = (out / "README.md").read_text()
    assert '"method": "eagle3"' in card
    assert '"parallel_drafting": true' in card

    flat, back = tmp_path / "flat", tmp_path / "back"
    done(specpipe("convert", out / "checkpoint", "--format", "peagle", "--out", flat))
    done(specpipe("convert", flat, "--format", "speculators", "--out", back))
    for name in ("config.json", "model.safetensors"):
        assert (back / name).read_bytes() == (out / "checkpoint" / name).read_bytes()
    config = json.loads((flat / "config.json").read_text())
    tensors = load_file(flat / "model.safetensors")
    trained = json.loads((out / "checkpoint" / "config.json").read_text())["mask_token_id"]
    assert config["ptd_token_id"] == trained
    assert tensors["mask_hidden"].shape == (1, 1, 3 * 32)
    done(specpipe("validate", back, "--dump", dump))

    further = tmp_path / "further"
    done(specpipe("train", "--out", further, "--init-from", flat, "--drafter", "peagle", *flags,
                  "--max-steps", "1"))  # fmt: skip
    onto: list[str | Path] = ["--dump", dump, "--device", "cpu", "--out", tmp_path / "other"]
    onto += ["--init-from", flat]
    other = specpipe("train", *onto)
    assert other.returncode == 2
    assert "give --drafter peagle" in other.stderr
    # speculators trains the whole embedding: such a drafter is replayed, but not gone on from.
    tensors["embed_tokens.weight"] += 0.1 * torch.randn_like(tensors["embed_tokens.weight"])
    save_file(tensors, flat / "model.safetensors", {"format": "pt"})
    done(specpipe("validate", flat, "--dump", dump))
    foreign = specpipe("train", *onto, "--drafter", "peagle")
    assert foreign.returncode == 2
    assert "its embedding is its own" in foreign.stderr
    page = tmp_path / "report.html"
    done(specpipe("report", "--run", whole, "--artifact", out, "--out", page))
    assert "peagle" in page.read_text()
