"""A new architecture goes through every stage without a line elsewhere."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from specpipe.schemas.drafters import registry
from tests.drafters.toy import ENTRY_POINT
from tests.pipeline.in_process import Ended, specpipe
from tests.train.conftest import read_metrics, write_dump

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place on the path where the toy's package is installed."""
    info = tmp_path / "site" / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)
    monkeypatch.syspath_prepend(info.parent)
    registry.foreign.cache_clear()
    yield info.parent
    registry.foreign.cache_clear()


def done(ended: Ended) -> Ended:
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.mark.slow
def test_a_toy_goes_through_dump_train_resume_ranks_export_replay_and_report(
    site: Path, tmp_path: Path
) -> None:
    dump = write_dump(tmp_path, layers=(4,))
    whole, run, two = (tmp_path / name for name in ("whole", "run", "two"))
    flags: list[str | Path] = ["--dump", dump, "--device", "cpu"]
    flags += ["--drafter", "toy", "--num-heads", "2"]
    flags += ["--batch-tokens", "300", "--pack-tokens", "150", "--held-out-fraction", "0.2"]
    flags += ["--eval-every", "4", "--checkpoint-every", "2", "--learning-rate", "0.0005"]
    steps: list[str | Path] = ["--draft-vocab-size", "64", "--max-steps", "8", *flags]
    done(specpipe("train", "--out", whole, *steps))
    stopped = specpipe("train", "--out", run, *steps, "--time-limit", "0.001")
    assert stopped.returncode == 5
    while stopped.returncode == 5:
        stopped = specpipe("train", "--out", run, *steps)
    assert done(stopped)
    assert read_metrics(run) == read_metrics(whole)
    rows = [row["eval"] for row in read_metrics(whole) if "eval" in row]
    assert rows[-1]["replay_temperature_1"]["tau"] > rows[0]["replay_temperature_1"]["tau"]

    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    paths = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [*ranks, "specpipe", "train", "--out", str(two), *map(str, steps)],
        check=True, capture_output=True, timeout=600,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    alone, together = (read_metrics(out)[1]["draft_loss"] for out in (whole, two))
    assert together == pytest.approx(alone, rel=1e-5)

    out = tmp_path / "artifact"
    done(specpipe("export", "--checkpoint", whole, "--out", out))
    validation = json.loads((out / "validation.json").read_text())
    assert validation["passed"]
    assert validation["replay"]["agreement"]["num_starts"] > 100
    written = load_file(out / "checkpoint" / "model.safetensors")
    assert set(written) == {"maps.0.weight", "maps.1.weight", "d2t", "t2d"}
    done(specpipe("validate", out, "--dump", dump))
    further = tmp_path / "further"
    done(specpipe("train", "--out", further, "--init-from", out, *flags, "--max-steps", "1"))
    page = tmp_path / "report.html"
    done(specpipe("report", "--run", whole, "--artifact", out, "--out", page))
    assert "toy" in page.read_text()
