"""Run one dump many times, each killed by SIGKILL at a moment of its own; a program, not a test.

    python dump_killed.py CONFIG.json OUT MOMENTS.json

MOMENTS is a list of chains; chain i works in OUT/i. A moment is an integer n (the process kills
itself right before or right after its n-th write to the store, odd n before) or a float (seconds
after which the parent kills it). After its last moment each chain runs to its end.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run
from specpipe.stages.storage.store.folder import Folder


def die_at(write: int) -> None:
    """SIGKILL at the `write`-th write: half of the time before it, else after it."""
    count = 0

    def dying(method: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == (write + 1) // 2 and write % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*arguments)
            if count == (write + 1) // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return replaced

    for name in ("write", "create"):
        setattr(Folder, name, dying(getattr(Folder, name)))


def attempt(config: DumpConfig, moment: int | float | None) -> bool:
    """Run in a process of its own; whether it came to its end."""
    child = os.fork()
    if child == 0:
        if isinstance(moment, int):
            die_at(moment)
        try:
            run(config)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(9)
        os._exit(0)
    if isinstance(moment, float):
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise SystemExit(f"the dump failed after {moment}")
    return True


def main() -> None:
    config_file, out, moments_file = map(Path, sys.argv[1:])
    config = DumpConfig.model_validate_json(config_file.read_bytes())
    num_killed = 0
    for i, chain in enumerate(json.loads(moments_file.read_bytes())):
        here = config.model_copy(update={"out": str(out / str(i))})
        for moment in chain:
            num_killed += not attempt(here, moment)
        if not attempt(here, None):
            raise SystemExit("the last run of a chain was killed")
    print(num_killed)


if __name__ == "__main__":
    main()
