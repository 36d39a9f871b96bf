"""`specpipe dump --time-limit`: exit code 5, and the same dump in the end."""

from pathlib import Path

import pytest

from specpipe.stages.dump.run import run
from tests.dump.commands import Command
from tests.dump.conftest import rows, save_target, small_config, write_lines
from tests.dump.resume.test_dump_kill import contents


@pytest.mark.parametrize("limit", [0.001, 0.2])
def test_a_dump_whose_time_is_up_goes_on(tmp_path: Path, limit: float) -> None:
    """In a process of its own, which is interrupted wherever it is."""
    target, data = save_target(tmp_path / "target"), write_lines(tmp_path / "data", rows(20))
    whole = small_config(target, data, tmp_path / "whole", shard_tokens=10)
    assert run(whole).num_shards == 20
    config = whole.model_copy(update={"out": str(tmp_path / "dump")})
    stopped = Command(config.model_copy(update={"time_limit": limit}), tmp_path / "stopped")
    assert stopped.wait() == 5, stopped.stderr
    assert stopped.result["kind"] == "UnfinishedError"
    assert "the time limit is reached" in stopped.result["error"]
    run(config)
    assert contents(config.out) == contents(whole.out)
