"""`specpipe export` that is stopped early: exit code 5, nothing half written, the same again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import UnfinishedError
from specpipe.stages.export import run as export_run
from specpipe.stages.export.out_folder import LOCK_FILE
from tests.validate.small import Trained


def arguments(trained: Trained, out: Path) -> list[str]:
    return ["export", "--checkpoint", str(trained.run), "--out", str(out), "--json"]


def is_whole_or_unfinished(out: Path) -> bool:
    """Whether OUT says of itself that it is unfinished, without a file of somebody else's."""
    validation = json.loads((out / "validation.json").read_text())
    left = {path.name for path in out.iterdir()}
    return not validation["passed"] and left <= {
        "checkpoint",
        "validation.json",
        "README.md",
        LOCK_FILE,
    }


WAITING = """
import runpy, time
from specpipe.stages.export import run
run._validate = lambda *_: time.sleep(600)
runpy.run_module("specpipe", run_name="__main__", alter_sys=True)
"""
"""The command, whose proof takes so long that a signal always comes before its end."""


@pytest.mark.slow
def test_sigterm_to_the_command(trained: Trained, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments(trained, out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        while not (out / "validation.json").exists():
            assert command.poll() is None
            time.sleep(0.002)
        command.send_signal(signal.SIGTERM)
        printed, notes = command.communicate(timeout=300)
    assert command.returncode == 5, notes
    error = json.loads(printed.splitlines()[-1])
    assert error["kind"] == "UnfinishedError"
    assert "asked to stop (SIGTERM)" in error["error"]
    assert "Traceback" not in notes
    assert is_whole_or_unfinished(out)
    specpipe.main(arguments(trained, out), standalone_mode=False)
    for name in ("model.safetensors", "config.json"):
        one, other = (folder / "checkpoint" / name for folder in (out, exported))
        assert one.read_bytes() == other.read_bytes()


def test_the_time_limit(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends what takes too long, at any place of it."""
    command = [*arguments(trained, tmp_path / "out"), "--time-limit", "3"]

    def waits(*_: object) -> None:
        time.sleep(600)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(export_run, "_validate", waits)
    found = CliRunner().invoke(specpipe, command)
    assert isinstance(found.exception, UnfinishedError)
    assert "the time limit is reached" in str(found.exception)
    assert is_whole_or_unfinished(tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    # The limit is no setting of the artifact's.
    assert not CliRunner().invoke(specpipe, arguments(trained, tmp_path / "out")).exception
    again = CliRunner().invoke(specpipe, [*command[:-1], "500"])
    assert json.loads(again.stdout.splitlines()[-1])["did_nothing"]


def test_a_second_signal_does_not_disturb_the_end(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedulers send it to each process of a job, and the job to its stage."""

    def interrupted(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(export_run, "_validate", interrupted)
    found = CliRunner().invoke(specpipe, arguments(trained, tmp_path / "out"))
    assert isinstance(found.exception, UnfinishedError)
    assert "SIGTERM" in str(found.exception)
