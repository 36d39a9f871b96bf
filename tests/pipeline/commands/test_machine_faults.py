"""Rights, memory and disks: exit code 6 and one line, whatever the command; and no escapes."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from specpipe.pipeline import cli
from specpipe.pipeline.machine_faults import machine_fault
from specpipe.pipeline.terminal import console
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.printable import printable
from tests.train.conftest import save_target, write_data


@pytest.mark.slow
def test_rights_that_are_missing_are_told_in_one_line(tmp_path: Path) -> None:
    """Each of these ended in a traceback, or in the advice to remove the file."""
    closed = tmp_path / "closed"
    closed.mkdir()
    for name in ("config.json", "model.safetensors", "job_state.json", "settings.yaml", "d2t.pt"):
        (closed / name).write_bytes(b"{}")
        (closed / name).chmod(0)
    locked = tmp_path / "locked"
    (locked / "inside").mkdir(parents=True)
    write_data(tmp_path / "rows.jsonl", 3, 0)
    save_target(tmp_path / "target", 0)
    locked.chmod(0)
    rows, out = str(tmp_path / "rows.jsonl"), str(tmp_path / "out")
    commands = [
        ["run", "--status", str(closed)],
        ["convert", str(closed), "--out", out, "--format", "eagle3"],
        ["dump", "--target", str(closed), "--data", rows, "--out", out, "--backend", "hf"],
        ["plan", "--target", str(closed), "--data", rows],
        ["serve-api", "--data", str(locked / "inside" / "api"), "--token", "a-long-token"],
        ["train", "--dump", str(tmp_path), "--out", str(locked / "inside" / "run")],
        ["dump", "--target", str(tmp_path / "target"), "--data", rows,
         "--out", str(locked / "inside" / "dump"), "--backend", "hf"],
        ["verify", str(locked / "inside")],
        ["export", "--checkpoint", str(locked / "inside"), "--out", out],
    ]  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.pipeline.commands.without_rights"],
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    finally:
        locked.chmod(0o755)
    ended = json.loads(done.stdout.splitlines()[-1])
    for command, (code, said) in zip(commands, ended, strict=True):
        assert code == 6, (command, said)
        assert "Permission denied" in said, (command, said)
        assert "Traceback" not in said
        assert "remove" not in said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
        ),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOSPC, "No space left on device", "/data/x"),
        PermissionError(errno.EACCES, "Permission denied", "/data/x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_faults_of_the_machine_end_with_6(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: object) -> None:
        raise error

    assert ended(monkeypatch, fails) == 6
    said = capsys.readouterr().err
    assert said.startswith("specpipe: ")
    assert said.count("\n") == 1
    assert "again" in said


def test_an_error_of_ours_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: object) -> None:
        raise ValueError("of a \x1b]0;title\x07 stranger")

    assert machine_fault(ValueError("x")) is None
    assert machine_fault(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert ended(monkeypatch, fails) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert r"of a \x1b]0;title\x07 stranger" in said
    assert "\x1b" not in said


def test_what_strangers_wrote_does_not_rule_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07\x9b31m\x08"

    def fails(**_: object) -> None:
        console.show("Title", [("name", hostile)], {"name": hostile}, as_json=True)
        console.show_columns("Title", ["a", "b"], [[hostile, hostile]])
        raise ConfigError(f"target {hostile} is none")

    assert ended(monkeypatch, fails) == 2
    captured = capsys.readouterr()
    for text in captured:
        assert not set("\x1b\x07\x9b\x08") & set(text)
    assert r"target \x1b[2J\x1b]0;owned\x07\x9b31m\x08 is none" in captured.err
    assert json.loads(captured.out.splitlines()[0]) == {"name": hostile}


def test_names_in_an_artifact_are_printed_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "\x1b[2Jartifact"
    hostile.mkdir()
    monkeypatch.setattr(sys, "argv", ["specpipe", "inspect", str(hostile)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code != 0
    assert "\x1b" not in "".join(capsys.readouterr())


def ended(monkeypatch: pytest.MonkeyPatch, callback: Callable[..., None]) -> object:
    """The exit code of a command that does this."""
    monkeypatch.setattr(cli.specpipe.commands["gc"], "callback", callback)
    monkeypatch.setattr(sys, "argv", ["specpipe", "gc", "memory://dump", "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_a_name_that_is_not_utf_8_is_spelled_out() -> None:
    name = os.fsdecode(b"d\xff\x1b[2J\n")
    assert printable(name) == "d\\udcff\\x1b[2J\n"
    assert printable(name).encode("utf-8", "strict")
