"""A run that is killed and started again computes what a whole one computes, bit for bit."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specpipe.schemas.errors import UnfinishedError
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import latest_checkpoint, resolve_checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.train.run import run
from specpipe.stages.train.trainee import Trainee
from tests.train.conftest import MakeConfig, read_metrics, same_run
from tests.train.train_killed import after, prepare, send

ROOT = Path(__file__).parents[2]
NUM_KILLS = int(os.environ.get("SPECPIPE_NUM_KILLS", "3"))
"""scripts/prove raises it."""


def _train(config_file: Path, *moments: str) -> list[int]:
    """Exit codes of processes that train one after the other."""
    command = [sys.executable, "-m", "tests.train.train_chain", str(config_file), *moments]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [*map(int, done.stdout.split())]


@pytest.mark.slow
def test_killed_anywhere_the_run_ends_bit_for_bit_the_same(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    whole = make_config(out=str(tmp_path / "whole"))
    (tmp_path / "whole.json").write_text(whole.model_dump_json())
    assert _train(tmp_path / "whole.json", "none") == [0]
    assert [row["step"] for row in read_metrics(whole.out) if "eval" not in row] == [*range(1, 13)]

    broken = make_config(out=str(tmp_path / "broken"))
    (tmp_path / "broken.json").write_text(broken.model_dump_json())
    rng = random.Random(20)
    # A run that goes on flushes some 20 files; most moments lie inside a checkpoint.
    moments = [
        rng.choice([f"write:{rng.randint(1, 30)}", f"step:{rng.randint(1, 5)}"])
        for _ in range(NUM_KILLS)
    ]
    *codes, last = _train(tmp_path / "broken.json", *moments, "none")
    assert {*codes} <= {-signal.SIGKILL, 0}, moments
    assert last == 0
    same_run(Path(whole.out), Path(broken.out))


def test_sigterm_saves_and_asks_to_be_run_again(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(out=str(tmp_path / "stopped"))
    asked: list[int] = []

    def stop_once(step: int, _total: int, figures: dict[str, float]) -> None:
        if step == 5 and "loss" in figures and not asked:
            asked.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(UnfinishedError, match=r"SIGTERM.*step 5 of 12") as raised:
        run(config, progress=stop_once)
    assert raised.value.exit_code == 5
    checkpoint = load_checkpoint(Path(config.out) / "checkpoints" / "step-00000005")
    assert checkpoint.state.step == 5
    run(config)
    whole = make_config(out=str(tmp_path / "whole"))
    run(whole)
    same_run(Path(whole.out), Path(config.out))


def test_sigterm_while_the_dump_is_verified(
    make_config: MakeConfig, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(preverify="full")
    with monkeypatch.context() as patch:
        patch.setattr(Dump, "check_metadata", Dump.check_metadata)
        after(Dump, "check_metadata", 1, send(signal.SIGTERM))
        with pytest.raises(UnfinishedError, match=rf"SIGTERM.*while {dump} was verified") as raised:
            run(config)
    assert raised.value.exit_code == 5
    assert not (Path(config.out) / "metrics.jsonl").exists()
    run(config)


@pytest.mark.slow
def test_sigterm_within_an_evaluation_which_is_made_when_the_run_goes_on(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (
        make_config(out=str(tmp_path / name), pack_tokens=110) for name in ("whole", "stopped")
    )
    run(whole)

    def stop_at_batch(number: int) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(Trainee, "measure", Trainee.measure)
            prepare(f"eval:{number}")
            with pytest.raises(UnfinishedError, match="SIGTERM") as raised:
                run(stopped)
        return str(raised.value)

    def die_after_evaluation(_step: int, _total: int, figures: dict[str, float]) -> None:
        if "tau" in figures:
            raise ZeroDivisionError

    # An evaluation has three batches.
    assert "before the first step, in the evaluation" in stop_at_batch(2)
    assert latest_checkpoint(Path(stopped.out)) is None
    for number in (5, 1):
        assert "step 4 of 12" in stop_at_batch(number)
    # The evaluation stands in metrics.jsonl then, and in no checkpoint.
    with pytest.raises(ZeroDivisionError):
        run(stopped, progress=die_after_evaluation)
    assert read_metrics(stopped.out)[-1]["eval"]
    assert "step 12 of 12" in stop_at_batch(8)
    run(stopped)
    same_run(Path(whole.out), Path(stopped.out))


def test_a_time_limit_within_evaluations_lets_every_run_get_further(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    whole, limited = (
        make_config(out=str(tmp_path / name), pack_tokens=110, max_steps=4, eval_every=2)
        for name in ("whole", "limited")
    )
    run(whole)
    for step in (1, 2, 2, 3, 4):
        with pytest.raises(UnfinishedError, match=f"time limit.*step {step} of 4"):
            run(limited.model_copy(update={"time_limit": 1e-6}))
    run(limited)
    same_run(Path(whole.out), Path(limited.out))


@pytest.mark.slow
def test_time_limit_saves_and_asks_to_be_run_again(make_config: MakeConfig) -> None:
    config = make_config(time_limit=1e-6)
    for step in range(1, 12):
        with pytest.raises(UnfinishedError, match=f"time limit.*step {step} of 12"):
            run(config)
    assert run(config).steps == 12


def test_finished_run_does_nothing_again(make_config: MakeConfig) -> None:
    config = make_config()
    first = run(config)
    files = {p: p.stat().st_mtime_ns for p in Path(config.out).rglob("*") if p.name != ".lock"}
    again = run(config)
    assert again == first.model_copy(update={"did_nothing": True})
    assert files == {
        p: p.stat().st_mtime_ns for p in Path(config.out).rglob("*") if p.name != ".lock"
    }


def test_checkpoints_are_rotated_and_the_best_stays(make_config: MakeConfig) -> None:
    result = run(make_config(keep_checkpoints=1))
    names = sorted(p.name for p in Path(result.out, "checkpoints").iterdir())
    assert names == sorted({"step-00000012", Path(result.checkpoint).name})
    assert resolve_checkpoint(result.out) == Path(result.checkpoint)
    tensors = load_file(Path(result.checkpoint) / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
