"""Worker processes: what they do with errors, deaths and the end of their command."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from specpipe.pipeline.launch.exchange import Job
from specpipe.pipeline.launch.executor import executor_of
from specpipe.pipeline.launch.local import Crew
from specpipe.pipeline.launch.shard_queue import MOST_LOSSES, ShardQueue
from specpipe.schemas.errors import ConfigError, UnfinishedError
from specpipe.schemas.settings.stages import DumpConfig
from tests.dump.commands import Command
from tests.dump.conftest import rows, save_target, small_config, write_lines


def test_a_lost_shard_is_handed_out_again_and_its_progress_taken_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reports: list[int] = []
    queue = ShardQueue([4, 5], reports.append)
    assert [queue.next(), queue.next(), queue.next()] == [4, 5, None]
    queue.report(4, 10)
    queue.report(4, 7)
    queue.lose("worker 0", 4, "killed by SIGKILL")
    assert "worker 0 died at shard 4: killed by SIGKILL" in capsys.readouterr().err
    queue.finish(5)
    assert not queue.is_done
    assert queue.next() == 4
    queue.report(4, 17)
    queue.finish(4)
    assert queue.is_done
    assert sum(reports) == 17


def test_deaths_in_a_row_end_the_command_and_a_finished_shard_forgives() -> None:
    queue = ShardQueue([0, 1], lambda num_tokens: None)
    for _ in range(MOST_LOSSES):
        queue.lose("worker", queue.next(), "gone")
    shard_id = queue.next()
    assert shard_id is not None
    queue.finish(shard_id)
    for _ in range(MOST_LOSSES):
        queue.lose("worker", queue.next(), "gone")
    with pytest.raises(UnfinishedError, match=r"without finishing a shard.* at shard .: gone"):
        queue.lose("worker", queue.next(), "gone")


def test_workers_that_die_at_once_end_in_an_error(tmp_path: Path) -> None:
    """Python runs sitecustomize before anything else: here it kills each worker."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    config = DumpConfig.model_validate({"target": "t", "data": "d", "out": "o"})
    queue = ShardQueue([7], lambda num_tokens: None)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with (
        pytest.raises(UnfinishedError, match="killed by SIGKILL, perhaps for lack of memory"),
        Crew(Job(config=config, stamp=""), [environment, environment]) as crew,
    ):
        crew.work(queue)


def test_memory_is_no_place_for_several_processes() -> None:
    values = {"target": "t", "data": "d", "out": "memory://dump", "workers": 2}
    with pytest.raises(ConfigError, match="memory of this process"):
        executor_of(DumpConfig.model_validate(values))
    assert executor_of(DumpConfig.model_validate(values | {"workers": 1})) is None


def test_ray_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"target": "t", "data": "d", "out": str(tmp_path), "executor": "ray"}
    config = DumpConfig.model_validate(values)
    execute = executor_of(config)
    assert execute is not None
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    nothing: Any = None
    with pytest.raises(ConfigError, match=r"pip install '\.\[ray\]'"):
        execute(config, nothing, [0], lambda num_tokens: None)


@pytest.mark.slow
def test_an_error_of_a_worker_is_the_commands(tmp_path: Path) -> None:
    """One weight is not a number: every sample is refused, in the workers."""
    target = save_target(tmp_path / "target")
    weights = load_file(target / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    data = write_lines(tmp_path / "data.jsonl", rows(20))
    config = small_config(target, data, tmp_path / "dump", workers=2)
    command = Command(config, tmp_path / "command")
    assert command.wait() == 3, command.stderr
    assert command.result["kind"] == "InputError"
    assert "not finite" in command.result["error"]
    assert "Traceback" not in command.stderr
