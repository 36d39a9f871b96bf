"""The ranks of a job's training, by the real torchrun: the stage ends with their own exit code."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from specpipe.pipeline.job.stage_process import StageOutcome, StageProcess, is_unfinished
from specpipe.pipeline.torchrun import end_as
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.runs.pointers import latest_checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.train.run import run
from tests.processes import children, command_line, kill
from tests.storage.damages import flip
from tests.train.conftest import MakeConfig, MakeDump

Disturb = Callable[[StageProcess], None]


def train(config: TrainConfig, disturb: Disturb | None = None) -> StageOutcome:
    """Two ranks; after the first checkpoint, `disturb` happens to them."""
    with (Path(config.out).parent / "lock").open("a") as lock:
        settings = config.model_dump(mode="json", exclude_unset=True)
        stage = StageProcess(["train"], settings, lock.fileno(), 2)
        watch = threading.Thread(target=_after_a_checkpoint, args=(config, stage, disturb))
        if disturb is not None:
            watch.start()
        outcome = stage.run()
        if disturb is not None:
            watch.join()
        return outcome


def _after_a_checkpoint(config: TrainConfig, stage: StageProcess, disturb: Disturb) -> None:
    while latest_checkpoint(Path(config.out)) is None:
        time.sleep(0.02)
    disturb(stage)


def kill_a_rank(_stage: StageProcess) -> None:
    _, *ranks = launcher_and_ranks()
    kill(ranks[-1])


def stop_all(stage: StageProcess) -> None:
    """A scheduler sends it to every process, and the job to its stage, too."""
    for pid in launcher_and_ranks():
        kill(pid, signal.SIGTERM)
    stage.stop()


def launcher_and_ranks() -> list[int]:
    [launcher] = [pid for pid in children(os.getpid()) if b"torchrun" in command_line(pid)]
    ranks = [pid for pid in children(launcher) if b"specpipe" in command_line(pid)]
    assert len(ranks) == 2
    return [launcher, *ranks]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((5, 2), 2), ((3, 5), 3), ((4, 4), 4), ((-9, 6), 6), ((5, -9), 5), ((5, 5), 5), ((1, 5), 1)],
)
def test_the_rank_that_failed_by_itself_decides(codes: tuple[int, int], expected: int) -> None:
    with pytest.raises(SystemExit) as end:
        end_as([ProcessFailure(rank, 1, code, "") for rank, code in enumerate(codes)])
    assert end.value.code == expected


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "RANK"),
        ({"RANK": "0"}, "LOCAL_RANK"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, "MASTER_ADDR"),
    ],
)
def test_several_processes_without_torchrun(
    given: dict[str, str],
    missing: str,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (given | {"WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"but {missing} is not set: start it with torchrun"):
        run(make_config())


@pytest.mark.slow
def test_a_damaged_dump_is_exit_code_4(make_config: MakeConfig, make_dump: MakeDump) -> None:
    root = make_dump()
    (key, *_) = (entry.key for entry in Dump.open(str(root)).manifests[0].objects)
    flip(lambda size: size // 2)(Folder.open(str(root)), key)
    outcome = train(make_config(dump=str(root)))
    assert outcome.exit_code == 4
    assert outcome.result["kind"] == "IntegrityError"
    assert key in outcome.result["error"]


@pytest.mark.slow
def test_a_rank_that_is_killed_is_exit_code_5(make_config: MakeConfig) -> None:
    config = make_config(checkpoint_every=1, max_steps=5_000)
    outcome = train(config, kill_a_rank)
    assert outcome.exit_code == 5
    assert is_unfinished(outcome)
    assert outcome.result["kind"] == "UnfinishedError"


@pytest.mark.slow
def test_a_stage_that_is_asked_to_stop_saves_and_is_exit_code_5(make_config: MakeConfig) -> None:
    config = make_config(checkpoint_every=5_000, eval_every=4, max_steps=5_000)
    outcome = train(config, stop_all)
    assert outcome.exit_code == 5
    assert outcome.result["kind"] == "UnfinishedError"
    [step] = re.findall(r"SIGTERM\): stopped at step (\d+)", outcome.result["error"])
    latest = latest_checkpoint(Path(config.out))
    assert latest is not None
    assert latest.name == f"step-{int(step):08}"
