"""`specpipe dump` as a real command: start it, watch it, find its workers."""

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specpipe.schemas.settings.stages import DumpConfig
from tests.processes import children, command_line

DEADLINE = 400.0
"""Seconds after which something that does not happen is a failure."""


class Command:
    """A running `specpipe dump`."""

    def __init__(
        self, config: DumpConfig, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """The configuration and what it prints go to files in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.out = Path(config.out)
        self._files = folder / "stdout", folder / "stderr"
        (folder / "config.yaml").write_text(config.model_dump_json(exclude_none=True))
        arguments = ["dump", "--config", str(folder / "config.yaml"), "--json"]
        with self._files[0].open("wb") as stdout, self._files[1].open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "specpipe", *arguments],
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
            )
        # A test that fails leaves no process behind.
        weakref.finalize(self, end, self.process)

    def num_shards(self) -> int:
        """Shards that are committed by now."""
        return len(list(self.out.glob("shards/*.manifest.json")))

    def workers(self) -> list[int]:
        """Process ids of its worker processes."""
        return [pid for pid in children(self.process.pid) if b"dump_worker" in command_line(pid)]

    def wait_for_shards(self, number: int) -> None:
        until(lambda: self.num_shards() >= number or self.process.poll() is not None)

    def wait(self) -> int:
        """The exit code."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the command does not end; it says:\n{self.stderr}") from None

    @property
    def stderr(self) -> str:
        return self._files[1].read_text()

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object that it printed."""
        values: dict[str, Any] = json.loads(self._files[0].read_text().splitlines()[-1])
        return values


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds; an AssertionError after too long."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "this does not happen"
        time.sleep(0.005)
