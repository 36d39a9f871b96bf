"""Training from a store: the same bits however the data comes, and a clean end when it does not."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from specpipe.schemas.errors import StoreError, UnfinishedError
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import latest_checkpoint
from specpipe.stages.storage.store import retry
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.retry import RetryPolicy
from specpipe.stages.train import loop
from specpipe.stages.train.run import run
from tests.s3 import Fault, Request, S3Server, use_endpoint
from tests.samples.test_read_ahead import check_threads_end
from tests.storage.damages import copy_objects
from tests.train.conftest import MakeConfig, read_metrics, same_run


@pytest.fixture(scope="module")
def whole(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run on local files that nothing disturbed, with the budget that is the default."""
    config = make_stream_config(str(dump), tmp_path_factory.mktemp("whole") / "run")
    run(config)
    return config


def make_stream_config(dump: str, out: Path, **changes: object) -> TrainConfig:
    """Ten steps of few samples, so that shards are opened all along the run."""
    settings: dict[str, object] = {
        "dump": dump,
        "out": str(out),
        "device": "cpu",
        "num_heads": 2,
        "draft_vocab_size": 64,
        "max_steps": 10,
        "batch_tokens": 200,
        "eval_every": 4,
        "checkpoint_every": 3,
        "held_out_fraction": 0.2,
        "preverify": "metadata",
    }
    return TrainConfig.model_validate(settings | changes)


def with_room(config: TrainConfig) -> TrainConfig:
    """Keeps every shard that it has read, which takes half as long from a store."""
    return config.model_copy(update={"prefetch_mib": 64})


@pytest.fixture(scope="module")
def s3_copy(dump: Path, s3_session: S3Server) -> str:
    """A dump in a bucket; a training reads it only."""
    with pytest.MonkeyPatch.context() as patch:
        use_endpoint(patch, s3_session.endpoint)
        root = f"{s3_session.make_bucket()}/root"
        copy_objects(Folder.open(str(dump)), Folder.open(root))
    return root


@pytest.fixture
def s3_dump(s3_copy: str, s3_server: S3Server) -> str:
    return s3_copy


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RetryPolicy(patience=0.0, least_tries=5, first_wait=0.01)
    monkeypatch.setattr(retry, "DEFAULT_POLICY", policy)


@pytest.mark.parametrize("prefetch_mib", [0, 1])
def test_the_budget_changes_no_bit(
    prefetch_mib: int, whole: TrainConfig, dump: Path, tmp_path: Path
) -> None:
    config = make_stream_config(str(dump), tmp_path / "run", prefetch_mib=prefetch_mib)
    run(config)
    same_run(Path(whole.out), Path(config.out))
    check_threads_end()


def test_a_dump_in_an_object_store_needs_no_copy(
    whole: TrainConfig, s3_dump: str, tmp_path: Path
) -> None:
    config = make_stream_config(s3_dump, tmp_path / "run")
    run(config)
    same_run(Path(whole.out), Path(config.out))
    check_threads_end()


def test_a_store_that_fails_now_and_then(
    whole: TrainConfig, s3_dump: str, s3_server: S3Server, impatient: None, tmp_path: Path
) -> None:
    rng = random.Random(1)
    num_faults = 0

    def fault(request: Request) -> Fault | None:
        nonlocal num_faults
        if rng.random() >= 0.1:
            return None
        num_faults += 1
        return rng.choice(["500", "503", "cut"])

    s3_server.fault = fault
    config = make_stream_config(s3_dump, tmp_path / "run")
    run(config)
    assert num_faults > 3
    same_run(Path(whole.out), Path(config.out))


def test_a_store_that_stays_away_ends_the_run_where_it_can_go_on(
    whole: TrainConfig, s3_dump: str, s3_server: S3Server, impatient: None, tmp_path: Path
) -> None:
    def gone_at_step_5(step: int, _total: int, _figures: dict[str, float]) -> None:
        if step == 5:
            s3_server.fault = lambda request: "503"

    config = make_stream_config(s3_dump, tmp_path / "run", prefetch_mib=0)
    with pytest.raises(StoreError, match=r"cannot read s3://.*run the same command") as raised:
        run(config, progress=gone_at_step_5)
    assert raised.value.exit_code == 6
    check_threads_end()
    s3_server.clear()
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000003").state.step == 3
    run(with_room(config))
    same_run(Path(whole.out), Path(config.out))


@pytest.fixture
def stalled() -> Iterator[threading.Event]:
    """Set while the store answers."""
    event = threading.Event()
    event.set()
    yield event
    event.set()


@pytest.mark.slow
@pytest.mark.parametrize("at_step", [0, 4, 5])
def test_sigterm_while_the_store_does_not_answer(
    at_step: int,
    whole: TrainConfig,
    s3_dump: str,
    s3_server: S3Server,
    stalled: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(loop, "STOP_PATIENCE", 0.1)

    def wait(request: Request) -> None:
        if not stalled.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
        stalled.wait()

    def stall(step: int, _total: int, figures: dict[str, float]) -> None:
        # At step 0, when the evaluation is over.
        if step == at_step and ("tau" in figures or step):
            stalled.clear()

    s3_server.fault = wait
    config = make_stream_config(s3_dump, tmp_path / "run", prefetch_mib=0)
    with pytest.raises(UnfinishedError, match="SIGTERM") as raised:
        run(config, progress=stall)
    assert not stalled.is_set()
    checkpoints = sorted(tmp_path.glob("run/checkpoints/step-*"))
    if at_step == 0:
        assert "before the first step" in str(raised.value)
        assert not checkpoints
    else:
        # As far as the samples went that were there.
        assert load_checkpoint(checkpoints[-1]).state.step >= at_step
    stalled.set()
    check_threads_end()
    run(with_room(config))
    same_run(Path(whole.out), Path(config.out))


@pytest.mark.slow
def test_the_process_ends_while_the_store_does_not_answer(
    s3_dump: str, s3_server: S3Server, stalled: threading.Event, tmp_path: Path
) -> None:
    out, waits = tmp_path / "run", threading.Event()

    def wait(_request: Request) -> None:
        if latest_checkpoint(out) is not None:
            waits.set()
            stalled.wait()

    stalled.clear()
    s3_server.fault = wait
    file = tmp_path / "config.json"
    file.write_text(make_stream_config(s3_dump, out, prefetch_mib=0).model_dump_json())
    command = [sys.executable, "-m", "specpipe", "train", "--config", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert waits.wait(120)
            process.send_signal(signal.SIGTERM)
            # The store is asked again for minutes.
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 5, said
    assert "checkpoint saved" in said


def test_the_waits_of_steps_and_evaluations_add_up(make_config: MakeConfig) -> None:
    config = make_config(prefetch_mib=0)
    result = run(config)
    waits = [row["data_wait"] for row in read_metrics(config.out, timings=True)]
    assert len(waits) == 16
    assert all(wait > 0 for wait in waits)
    assert result.data_wait == pytest.approx(sum(waits))
    assert result.data_wait < result.seconds
