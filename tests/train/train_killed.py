"""Train in a process that kills itself with SIGKILL; a program, not a test.

    python train_killed.py CONFIG.json MOMENT

MOMENT is `write:N` (right after the N-th flush of a file to disk, so also in the middle of a
checkpoint) or `step:N` (after N optimiser steps of this process); `none` runs to the end.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from specpipe.schemas.train_config import TrainConfig
from specpipe.stages.train.loop import Loop
from specpipe.stages.train.run import run


def kill_after(owner: Any, name: str, calls: int) -> None:
    """SIGKILL this process when `owner.name` has returned for the `calls`-th time."""
    method, count = getattr(owner, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        result = method(*arguments, **options)
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def main() -> None:
    config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    kind, _, number = sys.argv[2].partition(":")
    if kind == "write":
        kill_after(os, "fsync", int(number))
    elif kind == "step":
        kill_after(Loop, "_step", int(number))
    run(config)


if __name__ == "__main__":
    main()
