"""`specpipe dump --time-limit`: exit code 5, and the same dump in the end."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import UnfinishedError
from specpipe.stages.dump.run import run
from tests.dump.conftest import rows, save_target, small_config, write_lines
from tests.dump.resume.test_dump_kill import contents


@pytest.mark.parametrize("limit", ["0.001", "0.2"])
def test_a_dump_whose_time_is_up_goes_on(tmp_path: Path, limit: str) -> None:
    target, data = save_target(tmp_path / "target"), write_lines(tmp_path / "data", rows(20))
    whole = small_config(target, data, tmp_path / "whole", shard_tokens=10)
    assert run(whole).num_shards == 20
    config = whole.model_copy(update={"out": str(tmp_path / "dump")})
    file = tmp_path / "dump.yaml"
    file.write_text(config.model_dump_json(exclude_none=True))
    command = ["dump", "--config", str(file), "--time-limit"]
    found = CliRunner().invoke(specpipe, [*command, limit])
    assert isinstance(found.exception, UnfinishedError)
    assert "the time limit is reached" in str(found.exception)
    assert not CliRunner().invoke(specpipe, [*command, "600"]).exception
    assert contents(config.out) == contents(whole.out)
