"""Actors of a real Ray cluster: the same dump, deaths survived, errors reported."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from specpipe.pipeline.launch.executor import executor_of
from specpipe.schemas.errors import StoreError
from specpipe.stages.dump.run import run
from tests.dump.commands import Command, until
from tests.dump.conftest import rows, save_target, small_config, write_lines
from tests.dump.resume.test_dump_kill import contents
from tests.dump.test_dump_not_finite import poison
from tests.pipeline.launch.ray_cluster import RayCluster, two_nodes
from tests.processes import kill

JOB_SCRIPT = Path(__file__).parents[3] / "docs" / "operations" / "ray_job.sh"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


def test_the_shard_of_an_actor_that_is_killed_is_done_by_another(
    cluster: RayCluster, target: Path, tmp_path: Path
) -> None:
    """The dump is that of one worker, byte for byte."""
    data = write_lines(tmp_path / "data.jsonl", rows(60))
    alone = small_config(target, data, tmp_path / "alone", shard_tokens=50)
    run(alone)
    changes = {"out": str(tmp_path / "dump"), "executor": "ray", "workers": 2}
    command = Command(
        alone.model_copy(update=changes), tmp_path / "command", {"RAY_ADDRESS": cluster.address}
    )
    command.wait_for_shards(2)
    kill(cluster.engines()[0])
    assert command.wait() == 0, command.stderr
    assert "another one takes over" in command.stderr
    assert command.result["complete"]
    assert contents(command.result["url"]) == contents(alone.out)
    until(lambda: cluster.engines() == [])  # Ray's workers end a moment after their driver


def test_the_job_script(
    cluster: RayCluster, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_lines(tmp_path / "data.jsonl", rows(6))
    alone = small_config(target, data, tmp_path / "alone", shard_tokens=10)
    run(alone)
    config = alone.model_copy(update={"out": str(tmp_path / "dump")})
    (tmp_path / "my dump.yaml").write_text(config.model_dump_json(exclude_none=True))
    submit = tmp_path / "bin" / "ray"
    submit.parent.mkdir()
    submit.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m tests.pipeline.launch.ray_job_submit "$@"\n'
    )
    submit.chmod(0o755)
    path = [str(submit.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("EXPECTED_ADDRESS", "http://head:8265")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    arguments = ["http://head:8265", "2", str(tmp_path / "my dump.yaml")]
    done = subprocess.run(
        ["bash", str(JOB_SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["complete"]
    assert contents(config.out) == contents(alone.out)


def test_an_error_of_an_actor_is_the_commands(target: Path, tmp_path: Path) -> None:
    """Without RAY_ADDRESS, on a cluster that lives as long as the command."""
    broken = poison(target, tmp_path / "broken", "model.norm.weight", None, float("nan"))
    config = small_config(
        broken,
        write_lines(tmp_path / "data.jsonl", rows(9)),
        tmp_path / "dump",
        executor="ray",
        workers=1,
    )
    command = Command(config, tmp_path / "command")
    assert command.wait() == 4, command.stderr
    assert command.result["kind"] == "IntegrityError"
    assert "holds NaN or infinity" in command.result["error"]
    assert "Traceback" not in command.stderr


def test_a_cluster_that_is_not_there(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    data = write_lines(tmp_path / "data.jsonl", rows(3))
    config = small_config(target, data, tmp_path / "dump", executor="ray", workers=2)
    with pytest.raises(StoreError, match=r"cannot reach the Ray cluster 127\.0\.0\.1:1.*refused"):
        run(config, execute=executor_of(config))
