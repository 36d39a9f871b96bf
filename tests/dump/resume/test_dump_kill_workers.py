"""SIGKILL at random moments of a dump with three worker processes, then one more run."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run
from specpipe.stages.upkeep.verify.run import verify
from tests.dump.commands import Command
from tests.dump.resume.crew_killed import KILLS, Kill
from tests.dump.resume.test_dump_kill import contents
from tests.processes import kill

NUM_KILLS = int(os.environ.get("SPECPIPE_NUM_KILLS", "3"))
"""scripts/prove sets 25."""
NUM_SAMPLES = 40

MakeConfig = Callable[..., DumpConfig]


@pytest.fixture
def alone(
    make_config: MakeConfig,
    write_rows: Callable[..., Path],
    make_rows: Callable[..., list[dict[str, Any]]],
) -> DumpConfig:
    """A finished dump of one shard for each sample, by one worker that nothing disturbed."""
    config = make_config(write_rows(make_rows(NUM_SAMPLES)), shard_tokens=10)
    assert run(config).num_shards == NUM_SAMPLES
    return config


def random_kills(chance: random.Random, number: int) -> list[Kill]:
    """Some while the workers start, most at their work; all in turn."""
    kills = []
    for i in range(number):
        num_shards = chance.choice((0, 1, 1, 1)) * chance.randrange(NUM_SAMPLES - 10)
        kills.append(
            Kill(
                whom=("command", "worker", "all")[i % 3],
                num_shards=num_shards,
                seconds=chance.uniform(0, 0.1 if num_shards else 6.0),
                workers_then=chance.choice((1, 3)),
            )
        )
    return kills


@pytest.mark.slow
@pytest.mark.timeout(120 * (NUM_KILLS + 5))
def test_killed_and_run_again(alone: DumpConfig, tmp_path: Path) -> None:
    """Complete, byte for byte what one worker made that nothing disturbed."""
    kills = random_kills(random.Random(0), NUM_KILLS)
    config = alone.model_copy(update={"workers": 3})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "kills.json").write_bytes(KILLS.dump_json(kills))
    out = tmp_path / "killed"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.dump.resume.crew_killed"),
            *(tmp_path / "config.json", out, tmp_path / "kills.json"),
        ],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > len(kills) // 2
    expected = contents(alone.out)
    for i, planned in enumerate(kills):
        found = contents(str(out / str(i)))
        assert found.keys() == expected.keys(), planned
        assert [key for key in expected if found[key] != expected[key]] == [], planned
        report = verify(str(out / str(i)))
        assert (report.complete, report.damages) == (True, ()), planned


@pytest.mark.slow
def test_workers_that_keep_dying_end_the_command(alone: DumpConfig, tmp_path: Path) -> None:
    """Exit code 5 with advice; what they had finished stays, and another run completes it."""
    config = alone.model_copy(update={"out": str(tmp_path / "again"), "workers": 2})
    command = Command(config, tmp_path / "command")
    while command.process.poll() is None:
        for pid in command.workers():
            kill(pid)
    assert command.wait() == 5, command.stderr
    assert command.result["kind"] == "UnfinishedError"
    assert "killed by SIGKILL, perhaps for lack of memory" in command.result["error"]
    assert "run the same command again" in command.result["error"]
    run(config.model_copy(update={"workers": 1}))
    assert contents(config.out) == contents(alone.out)
