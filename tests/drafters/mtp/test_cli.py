"""`specpipe` with the MTP layer of a tiny target: dump, plan, train, export, replay, report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.drafters.mtp.targets import LAYERS, save_target
from tests.pipeline.in_process import Ended, specpipe
from tests.train.conftest import read_metrics, write_data

FLAGS: list[str | Path] = [
    "--drafter", "mtp", "--device", "cpu", "--num-heads", "3", "--batch-tokens", "300",
    "--held-out-fraction", "0.2", "--learning-rate", "1e-3", "--eval-every", "4",
    "--checkpoint-every", "4",
]  # fmt: skip


def done(ended: Ended) -> Ended:
    assert ended.returncode == 0, ended.stderr
    return ended


def dump_of(folder: Path, family: str, *, with_mtp: bool = True, layers: str = str(LAYERS)) -> Path:
    target = save_target(folder / "target", family, with_mtp=with_mtp)
    data = write_data(folder / "data.jsonl", 40, 0)
    out = folder / "dump"
    flags: list[str | Path] = ["--target", target, "--data", data, "--out", out]
    flags += ["--layers", layers, "--backend", "hf", "--device", "cpu"]
    done(specpipe("dump", *flags))
    return out


@pytest.mark.slow
def test_the_targets_layer_goes_from_the_dump_to_an_artifact(tmp_path: Path) -> None:
    dump = dump_of(tmp_path, "mimo")
    index = json.loads((dump / "index.json").read_text())
    listed = {entry["key"] for entry in index["objects"]}
    assert {"target/mtp.json", "target/mtp.safetensors"} <= listed
    done(specpipe("plan", dump))

    run, out = tmp_path / "run", tmp_path / "artifact"
    done(specpipe("train", "--dump", dump, "--out", run, *FLAGS, "--max-steps", "8"))
    losses = [row["draft_loss"] for row in read_metrics(run) if "draft_loss" in row]
    assert losses[-1] < losses[0]
    done(specpipe("export", "--checkpoint", run, "--out", out))
    validation = json.loads((out / "validation.json").read_text())
    assert validation["passed"]
    assert validation["replay"]["agreement"]["num_starts"] > 50
    written = load_file(out / "checkpoint" / "model.safetensors")
    stored = load_file(dump / "target" / "mtp.safetensors")
    assert set(written) == set(stored)
    changed = [n for n in stored if not torch.equal(written[n], stored[n].bfloat16())]
    assert "model.mtp_layers.0.input_proj.weight" in changed
    ours, theirs = config_of(out / "checkpoint"), config_of(tmp_path / "target")
    assert theirs.items() <= ours.items()
    done(specpipe("validate", out, "--dump", dump))
    page = tmp_path / "report.html"
    done(specpipe("report", "--run", run, "--artifact", out, "--out", page))
    assert "mtp, one layer of mimo" in page.read_text()


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.slow
def test_other_drafters_take_the_layers_that_are_named_of_a_target_of_few(tmp_path: Path) -> None:
    """EAGLE-3 has no default layers in a target of three."""
    dump = dump_of(tmp_path, "mimo", layers="1,2")
    flags: list[str | Path] = [
        "--dump",
        dump,
        "--drafter",
        "eagle3",
        "--layers",
        "1,2",
        "--max-steps",
        "1",
    ]
    flags += ["--batch-tokens", "300", "--held-out-fraction", "0.2", "--device", "cpu"]
    done(specpipe("train", "--out", tmp_path / "run", *flags))
