"""vLLM drafts with the MTP layer as it was trained, beside an untouched target."""

import json
from pathlib import Path

import pytest

from scripts.targets.mtp_target import mtp_target
from specpipe.schemas.records.served import ServeFindings
from tests.pipeline.in_process import Ended, specpipe

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

DATA = Path(__file__).parents[3] / "sample_data" / "train" / "generated.jsonl"
LAYERS = 8


def done(ended: Ended) -> None:
    assert ended.returncode == 0, ended.stderr


def trained_layer(folder: Path, family: str, *, steps: int) -> tuple[Path, Path]:
    """A target of the family and a run on what it wrote."""
    target, dump, run = mtp_target(folder / "target", family), folder / "dump", folder / "run"
    some = folder / "some.jsonl"
    some.write_text("".join(DATA.read_text().splitlines(keepends=True)[:200]))
    flags: list[str | Path] = ["--target", target, "--data", some, "--out", dump]
    done(specpipe("dump", *flags, "--for", "mtp", "--backend", "hf"))
    flags = ["--dump", dump, "--out", run, "--drafter", "mtp", "--num-heads", "3"]
    flags += ["--max-steps", str(steps), "--batch-tokens", "2048", "--learning-rate", "3e-3"]
    flags += ["--eval-every", str(steps), "--held-out-fraction", "0.2"]
    done(specpipe("train", *flags))
    return target, run


def test_the_engine_accepts_what_the_replay_says(tmp_path: Path) -> None:
    _, run = trained_layer(tmp_path, "mimo", steps=60)
    out = tmp_path / "artifact"
    flags: list[str | Path] = ["--checkpoint", run, "--out", out]
    flags += ["--validate", "structure,replay,serve", "--serve-prompts", "24"]
    flags += ["--serve-max-tokens", "48", "--serve-batch-sizes", "1"]
    flags += ["--serve-speculative-tokens", "3"]
    done(specpipe("export", *flags))
    found = ServeFindings.model_validate(json.loads((out / "validation.json").read_text())["serve"])
    (served,) = found.runs
    assert served.lossless_greedy.passed
    for measured in (served.greedy, served.temperature_1):
        assert measured is not None
        assert measured.passed
        assert measured.tau_measured > 1.2
        print(f"{measured.tau_measured:.3f} measured, {measured.tau_replayed:.3f} replayed")
