"""The commands of docs/operations.md do what the page says, in its order."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from specpipe.pipeline.cli import specpipe
from specpipe.stages.storage.dump import Dump
from tests.dump.conftest import rows, save_target, small_config, write_lines

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
COMMANDS = [
    line.split(" # ")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
CRON = re.findall(r"^(?:[\d*]+ ){5} *(.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    target, data = save_target(tmp_path / "target"), write_lines(tmp_path / "data", rows(4))
    path = tmp_path / "dump.yaml"
    path.write_text(
        small_config(target, data, tmp_path / "dump").model_dump_json(exclude_none=True)
    )
    return path


def test_every_command_is_one_of_ours() -> None:
    assert len(COMMANDS) > 6
    assert len(CRON) == 1
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "specpipe"
        name, *rest = arguments
        found = specpipe.commands[name]
        # Raises a UsageError for an option that does not exist.
        found.make_context(name, rest)


def test_the_commands_work_on_s3(config_file: Path, s3_root: str) -> None:
    """Those with several workers are for tests of their own."""
    url = f"{s3_root}/dump"
    run = [command for command in COMMANDS if "--workers" not in command]
    names = [command.split()[1] for command in run]
    assert names == ["plan", "dump", "inspect", "verify", "gc", "gc"]
    for command in run:
        arguments = shlex.split(command)[1:]
        arguments = [
            part.replace("s3://bucket/dump", url).replace("dump.yaml", str(config_file))
            for part in arguments
        ]
        if arguments[0] in ("plan", "dump"):
            arguments += ["--out", url]
        assert not specpipe.main(arguments, standalone_mode=False), command
    assert Dump.open(url).index is not None


@pytest.mark.slow
def test_the_line_of_the_crontab(config_file: Path, tmp_path: Path) -> None:
    line = CRON[0].replace(r"\%", "%")
    for there, here in (
        ("/run/lock/specpipe", tmp_path / "lock"),
        ("/etc/specpipe/dump.yaml", config_file),
        ("s3://bucket", tmp_path),
        ("/var/log/specpipe.log", tmp_path / "log"),
    ):
        assert there in line
        line = line.replace(there, str(here))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["/bin/sh", "-c", line], env={**os.environ, "PATH": path}, timeout=300, check=False
    )
    assert done.returncode == 0, (tmp_path / "log").read_text()
    [out] = tmp_path.glob("dump-20??-??-??")
    assert Dump.open(str(out)).index is not None
