"""Processes over gloo, started by torchrun: what one process computes, and one end for all."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specpipe.schemas.errors import UnfinishedError
from specpipe.schemas.records.checkpoint import TrainState
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import latest_checkpoint
from specpipe.stages.samples.reader import SampleReader
from specpipe.stages.samples.selection import split
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.train.data.order import planned_steps
from specpipe.stages.train.run import run
from tests.storage.damages import flip
from tests.train.conftest import MakeConfig, MakeDump, read_metrics, resolved, same_run
from tests.train.ranks.two_ranks import SECONDS, train

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def make_packed(make_config: MakeConfig, tmp_path: Path) -> MakeConfig:
    """Steps of three packs or so: two processes have different numbers of them."""

    def make(name: str, **changes: Any) -> TrainConfig:
        return make_config(out=str(tmp_path / name), pack_tokens=110, **changes)

    return make


@pytest.fixture
def whole(make_packed: MakeConfig) -> TrainConfig:
    """A run of one process."""
    config = make_packed("whole")
    run(config)
    return config


def assert_close(one: TrainConfig, other: TrainConfig) -> None:
    """Two runs computed the same but for rounding."""
    first, second = read_metrics(one.out), read_metrics(other.out)
    assert [(r["step"], "eval" in r) for r in first] == [(r["step"], "eval" in r) for r in second]
    for row, twin in zip(first, second, strict=True):
        assert row.get("tokens") == twin.get("tokens")
        assert row.get("epoch") == twin.get("epoch")
        for name in ("draft_loss", "grad_norm", "alpha", "kl", "cross_entropy"):
            row_, twin_ = row.get("eval", row), twin.get("eval", twin)
            if name in row_:
                assert twin_[name] == pytest.approx(row_[name], rel=2e-3), (row["step"], name)
        if "eval" in row:
            for name in ("num_samples", "num_positions"):
                assert row["eval"][name] == twin["eval"][name]
            for curve in ("replay_temperature_1", "replay_greedy_draft"):
                for name in ("tau", "tau_low", "num_rounds"):
                    assert twin["eval"][curve][name] == pytest.approx(
                        row["eval"][curve][name], rel=1e-2
                    )
    # Before the weights differ by the rounding of an update, there is the rounding of sums alone.
    assert second[1]["draft_loss"] == pytest.approx(first[1]["draft_loss"], rel=1e-5)
    assert second[1]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=1e-5)
    assert second[0]["eval"]["replay_temperature_1"]["tau"] == pytest.approx(
        first[0]["eval"]["replay_temperature_1"]["tau"], rel=1e-6
    )


def test_packs_of_a_step_are_uneven_over_two_ranks(make_packed: MakeConfig) -> None:
    """What the tests below rest on."""
    config = make_packed("none")
    run(config.model_copy(update={"max_steps": 1}))
    state = _state(config).model_copy(update={"step": 0, "batch_in_epoch": 0, "total_steps": 12})
    reader = SampleReader(Dump.open(config.dump), None)
    training, _ = split(reader.refs(), config.held_out_fraction)
    counts = [len(step.packs) for step in planned_steps(resolved(config), state, training)]
    assert len(counts) == 12
    assert 3 in counts
    assert any(count % 2 for count in counts)


@pytest.mark.parametrize(
    ("sharded", "mixed", "optimizer"),
    [(False, True, "adamw"), (True, False, "adamw"), (True, False, "muon")],
)
def test_two_ranks_train_as_one_process(
    sharded: bool, mixed: bool, optimizer: str, make_packed: MakeConfig, make_dump: MakeDump
) -> None:
    mix = {str(make_dump(data_seed=5, num_samples=30)): 0.5} if mixed else {}
    whole, config = (
        make_packed(name, shard=name == "two" and sharded, mix=mix, optimizer=optimizer)
        for name in ("whole", "two")
    )
    run(whole)
    file = Path(config.out).with_suffix(".json")
    file.write_text(config.model_dump_json())
    command = [*TORCHRUN, "-m", "specpipe", "train", "--config", str(file), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"best_step"') == 1
    assert_close(whole, config)
    paths = [latest_checkpoint(Path(c.out)) for c in (whole, config)]
    one, two = (load_file(path / "model.safetensors") for path in paths if path)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert weight.shape == two[name].shape
        # Muon turns matrices in bfloat16: its weights differ by up to 5e-4, and by 7e-3 where each
        # shard is turned alone.
        torch.testing.assert_close(two[name], weight, rtol=1e-2, atol=2e-3, msg=name)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_run_goes_on_with_another_number_of_ranks(
    sharded: bool, whole: TrainConfig, make_packed: MakeConfig
) -> None:
    """One process, then two, then one; SIGTERM to one of the two ends both."""
    config = make_packed("changing", shard=sharded)

    def stop_at_5(step: int, _total: int, figures: dict[str, float]) -> None:
        if step == 5 and "loss" in figures:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(UnfinishedError):
        run(config, progress=stop_at_5)
    assert _state(config).step == 5
    codes, stderr = train(config, "1/term:4")
    assert codes == [5, 5], stderr
    assert stderr.count("SIGTERM): stopped at step 9 of 12") == 1
    assert _state(config).step == 9
    run(config)
    assert_close(whole, config)


def test_a_rank_that_is_killed_ends_the_run_which_goes_on_bit_for_bit(
    make_packed: MakeConfig,
) -> None:
    whole, broken = make_packed("undisturbed"), make_packed("broken")
    assert train(whole)[0] == [0, 0]
    # The first one while it writes a checkpoint, the other one between two steps.
    for moment, ends in (("0/write:9", [-signal.SIGKILL, 5]), ("1/step:4", [5, -signal.SIGKILL])):
        codes, stderr = train(broken, moment)
        assert codes == ends, stderr
        assert "lost the other processes" in stderr
    assert train(broken)[0] == [0, 0]
    same_run(Path(whole.out), Path(broken.out))


@pytest.mark.parametrize("sharded", [False, True])
def test_sigterm_to_a_rank_within_an_evaluation(sharded: bool, make_packed: MakeConfig) -> None:
    whole, stopped = (make_packed(name, shard=sharded) for name in ("whole", "stopped"))
    assert train(whole)[0] == [0, 0]
    # Of an evaluation's three batches the second is its own.
    codes, stderr = train(stopped, "1/eval:2")
    assert codes == [5, 5], stderr
    assert stderr.count("SIGTERM): stopped at step 4 of 12") == 1
    assert _state(stopped).eval_due
    assert train(stopped)[0] == [0, 0]
    same_run(Path(whole.out), Path(stopped.out))


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(make_packed: MakeConfig) -> None:
    config = make_packed("diverged")
    codes, stderr = train(config, "1/nan:3")
    assert codes == [6, 6], stderr
    (said,) = re.findall(r"DivergedError: .*", stderr)
    step = int(re.findall(r"at step (\d+)", said)[0])
    assert _state(config).step == step - 1
    # The samples of the pack alone that it came from: the second of its step.
    reader = SampleReader(Dump.open(config.dump), None)
    training, _ = split(reader.refs(), config.held_out_fraction)
    guilty = next(planned_steps(resolved(config), _state(config), training)).packs[1]
    named = set(re.findall(r"shard \d+ sample \d+", said))
    assert named == {f"shard {ref.shard_id} sample {ref.index}" for ref in guilty[:8]}
    assert train(config)[0] == [0, 0]


def test_a_damaged_shard_that_one_rank_reads_ends_all(
    make_packed: MakeConfig, make_dump: MakeDump
) -> None:
    root = make_dump()
    manifest = Dump.open(str(root)).manifests[2]
    (key, *_) = (entry.key for entry in manifest.objects if "/final/c/" in entry.key)
    flip(lambda size: size // 2)(Folder.open(str(root)), key)
    config = make_packed("damaged", dump=str(root), preverify="metadata")
    codes, stderr = train(config)
    assert codes == [4, 4], stderr
    assert stderr.count("IntegrityError: ") == 1
    assert key in stderr


def _state(config: TrainConfig) -> TrainState:
    path = latest_checkpoint(Path(config.out))
    assert path is not None
    return load_checkpoint(path).state
