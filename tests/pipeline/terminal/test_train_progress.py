"""What a person sees while training: within 80 columns, without colour, and in a log file."""

import io
import time
from typing import Any

import pytest
from rich.console import Console

from specpipe.pipeline.commands.train.progress import TrainProgress
from specpipe.pipeline.terminal import progress as progress_module
from specpipe.pipeline.terminal.progress import Bar, Progress, progress
from specpipe.stages.process.activity import doing

STEP = {
    "loss": 3.2119,
    "tokens": 8192.0,
    "seconds": 0.5,
    "data_wait": 0.001,
    "memory_mib": 13_107.2,
}


def told(show: Progress, total: int) -> TrainProgress:
    train = TrainProgress(show)
    train(0, total, {"tau": 1.0426})
    for step in range(1, total // 2 + 1):
        train(step, total, STEP)
    train(total // 2, total, {"tau": 1.6534})
    return train


def test_figures_of_the_last_steps() -> None:
    train = told(Progress("train", "steps", None), 10)
    assert train.text() == "loss 3.212  tau 1.653  16.4k tokens/s  wait 0.2%  12.8 GiB"
    # Speed is that of the last steps: twenty slow ones leave nothing of the fast ones before.
    for step in range(6, 26):
        train(step, 30, STEP | {"seconds": 8192.0, "data_wait": 4096.0})
    assert "  1 tokens/s  wait 50.0%  " in train.text()


@pytest.mark.parametrize("colour", [None, "standard"])
def test_a_terminal_of_80_columns(colour: Any) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=colour, soft_wrap=True)
    with Bar("steps", console) as bar:
        told(Progress("train", "steps", bar), 123_456)
        lines = console.render_lines(bar.get_renderable(), pad=False)
        shown = ["".join(segment.text for segment in line) for line in lines]
    assert len(shown) == 2
    assert all(len(line) <= 80 for line in shown)
    assert shown[0].startswith("train")
    assert "61728/123456 steps" in shown[0]
    assert shown[1] == "loss 3.212  tau 1.653  16.4k tokens/s  wait 0.2%  12.8 GiB"
    assert ("\x1b[3" in file.getvalue()) is (colour is not None)


def test_a_log_file_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress("train", "steps") as show:
        told(show, 123_456)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress_module, "LOG_SECONDS", 0.0)
    with progress("train", "steps") as show:
        told(show, 100)
    text = capsys.readouterr().err
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("train: 0 of 100 steps  tau 1.043\n")
    assert "train: 50 of 100 steps  loss 3.212  tau 1.653" in text


def test_an_estimate_counts_from_the_first_progress_of_this_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither what an earlier run did nor the start of an engine says anything of the rate."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    show = Progress("dump", "tokens", None)
    show(900, 10_000)
    now += 300  # an engine starts, and the first sample warms it up
    show(965, 10_000)
    assert show._left(now, 965, 10_000) == ""
    now += 5
    assert show._left(now, 1000, 10_000) == "", "too short a time to know"
    now += 15
    assert show._left(now, 1165, 10_000) == ", 0:14:44 left", "200 tokens in 20 s"
    assert show._left(now, 10_000, 10_000) == ""


def test_a_log_says_what_is_done_at_once_and_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    show = Progress("dump", "tokens", None)
    show.doing("starting vLLM")
    assert capsys.readouterr().err == "dump: starting vLLM\n"
    show.go_on()
    assert capsys.readouterr().err == ""
    now += progress_module.LOG_SECONDS
    show.go_on()
    assert capsys.readouterr().err == "dump: starting vLLM (0:00:15)\n"
    show.doing("the target writes: 10 tokens")
    show.doing("the target writes: 20 tokens")
    assert capsys.readouterr().err == "dump: the target writes: 10 tokens\n"
    now += progress_module.LOG_SECONDS
    show.go_on()
    assert capsys.readouterr().err == "dump: the target writes: 20 tokens (0:00:15)\n"


def test_a_terminal_shows_what_is_done_before_there_are_figures() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, soft_wrap=True)
    with Bar("tokens", console) as bar:
        show = Progress("dump", "tokens", bar)
        show.doing("starting vLLM")
        lines = console.render_lines(bar.get_renderable(), pad=False)
    assert "starting vLLM" in "".join(segment.text for line in lines for segment in line)


def test_what_a_step_says_reaches_whoever_watches(capsys: pytest.CaptureFixture[str]) -> None:
    doing("nobody listens")
    with progress("dump", "tokens"):
        doing("hashing the target")
    doing("nobody listens any more")
    assert capsys.readouterr().err == "dump: hashing the target\n"
