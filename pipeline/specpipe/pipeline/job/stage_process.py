"""A stage of a job as its own process, which frees its memory and GPU when it ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from specpipe.schemas.errors import UnfinishedError
from specpipe.stages.process.parent import with_this_parent


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """How a stage's process ended."""

    exit_code: int
    result: dict[str, Any]
    """What it printed as JSON: its result, or `error` and `kind`."""


class StageProcess:
    """Runs one command of specpipe with --json; its notes go where this process's go."""

    def __init__(
        self, arguments: Sequence[str], config: Mapping[str, Any] | None, lock: int, processes: int
    ) -> None:
        """`lock`: a descriptor that it inherits. With `processes` above 1, torchrun starts it."""
        self._arguments, self._config, self._lock = list(arguments), config, lock
        self._launcher = [sys.executable, "-m"]
        if processes > 1:
            ranks = ["--standalone", "--nproc-per-node", str(processes)]
            self._launcher += ["specpipe.pipeline.torchrun", *ranks, "-m"]
        self._process: subprocess.Popen[str] | None = None
        self._is_to_stop = False

    def run(self) -> StageOutcome:
        """Wait for its end."""
        with _file_in_memory(self._config) as path:
            config = [] if path is None else ["--config", path]
            self._process = subprocess.Popen(
                [*self._launcher, "specpipe", *self._arguments, *config, "--json"],
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=(self._lock,),
                env=with_this_parent(),
            )
            if self._is_to_stop:  # Asked while it was being started.
                self.stop()
            printed, _ = self._process.communicate()
        return StageOutcome(self._process.returncode, _last_object(printed))

    def stop(self) -> None:
        """Ask it to save and end; before `run` has started it, as soon as it is there."""
        self._is_to_stop = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)


@contextmanager
def _file_in_memory(config: Mapping[str, Any] | None) -> Iterator[str | None]:
    """A path at which processes of this user read the configuration. It may hold credentials, so
    it is on no disk, and gone with this process."""
    if config is None:
        yield None
        return
    descriptor = os.memfd_create("specpipe-config")
    try:
        with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
            json.dump(config, file)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _last_object(printed: str) -> dict[str, Any]:
    for line in reversed(printed.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def is_unfinished(outcome: StageOutcome) -> bool:
    """Whether the same command goes on where it ended."""
    return outcome.exit_code == UnfinishedError.exit_code or outcome.exit_code < 0
