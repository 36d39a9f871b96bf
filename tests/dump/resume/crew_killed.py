"""Run a dump of several worker processes many times, each with a SIGKILL; a program, not a test.

    python -m tests.dump.resume.crew_killed CONFIG.json OUT KILLS.json

KILLS is a list of `Kill`; the i-th is of the dump OUT/i. Each dump is then run once more.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from specpipe.pipeline.launch.executor import executor_of
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run
from tests.dump.commands import DEADLINE, until
from tests.processes import children, command_line, kill


@dataclass(frozen=True, slots=True)
class Kill:
    whom: Literal["command", "worker", "all"]
    """The command alone, whose workers then end by themselves; one of its workers, which the
    command survives; or all of them at once."""
    num_shards: int
    """Not before so many shards are committed."""
    seconds: float
    """So long after that."""
    workers_then: int
    """Workers of the run that follows."""


KILLS = TypeAdapter(list[Kill])


def start(config: DumpConfig) -> int:
    """The dump in a process of its own, as the command runs it."""
    child = os.fork()
    if child == 0:
        try:
            run(config, execute=executor_of(config))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(9)
        os._exit(0)
    return child


def workers_of(command: int) -> list[int]:
    return [pid for pid in children(command) if b"dump_worker" in command_line(pid)]


def has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def outcome(command: int) -> int:
    """Its exit code, or minus the signal that ended it."""
    deadline = time.monotonic() + DEADLINE
    while not has_ended(command):
        if time.monotonic() > deadline:
            raise SystemExit("a dump does not end")
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])


def run_killed(config: DumpConfig, wanted: Kill) -> tuple[bool, list[int]]:
    """Whether the kill came in time, and the workers that the command had by then."""
    command = start(config)
    out = Path(config.out)

    def is_time() -> bool:
        return len(list(out.glob("shards/*.manifest.json"))) >= wanted.num_shards and (
            wanted.whom == "command" or bool(workers_of(command))
        )

    until(lambda: is_time() or has_ended(command))
    time.sleep(wanted.seconds)
    workers = workers_of(command)
    in_time = not has_ended(command) and bool(workers)
    doomed = {"command": [command], "worker": workers[:1], "all": [command, *workers]}[wanted.whom]
    for pid in doomed:
        kill(pid)
    code = outcome(command)
    # A worker that dies is replaced; a command that dies is dead.
    if in_time and code != (0 if wanted.whom == "worker" else -signal.SIGKILL):
        raise SystemExit(f"the dump ended with {code} after {wanted}")
    return in_time, workers


def wait_for_end(workers: list[int]) -> None:
    until(lambda: not any(b"dump_worker" in command_line(pid) for pid in workers))


def main() -> None:
    config_file, out, kills_file = map(Path, sys.argv[1:])
    config = DumpConfig.model_validate_json(config_file.read_bytes())
    num_in_time = 0
    for i, wanted in enumerate(KILLS.validate_json(kills_file.read_bytes())):
        here = config.model_copy(update={"out": str(out / str(i))})
        in_time, orphans = run_killed(here, wanted)
        num_in_time += in_time
        # At once: workers of the command that was killed may still be at their shards.
        if outcome(start(here.model_copy(update={"workers": wanted.workers_then}))):
            raise SystemExit(f"the run after {wanted} failed")
        wait_for_end(orphans)
    print(num_in_time)


if __name__ == "__main__":
    main()
