"""Train in a process that comes to harm at a given moment; a program, not a test.

    python train_killed.py CONFIG.json [RANK/]MOMENT

MOMENT is `write:N` (SIGKILL right after the N-th flush of a file to disk, so also in the middle of
a checkpoint), `step:N` (SIGKILL after N optimiser steps of this process), `term:N` (SIGTERM then),
`eval:N` (SIGTERM after N batches of evaluations), `nan:N` (the N-th loss of this process is not
finite); `none` runs to the end. Of several processes it happens to RANK alone. The exit code is
that of the command line.
"""

import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specpipe.schemas.errors import SpecpipeError
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.train.loop import Loop
from specpipe.stages.train.run import run
from specpipe.stages.train.trainee import Trainee


def after(owner: Any, name: str, calls: int, act: Callable[[Any], Any]) -> None:
    """Give what `owner.name` returns the `calls`-th time to `act`, whose result is returned."""
    method, count = getattr(owner, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        result = method(*arguments, **options)
        count += 1
        return act(result) if count == calls else result

    setattr(owner, name, counted)


def send(number: signal.Signals) -> Callable[[Any], Any]:
    def act(result: Any) -> Any:
        os.kill(os.getpid(), number)
        return result

    return act


def prepare(moment: str) -> None:
    kind, _, number = moment.partition(":")
    if kind == "write":
        after(os, "fsync", int(number), send(signal.SIGKILL))
    elif kind == "step":
        after(Loop, "_step", int(number), send(signal.SIGKILL))
    elif kind == "term":
        after(Loop, "_step", int(number), send(signal.SIGTERM))
    elif kind == "eval":
        after(Trainee, "measure", int(number), send(signal.SIGTERM))
    elif kind == "nan":
        after(Trainee, "loss", int(number), lambda made: (made[0] * math.nan, made[1]))


def main() -> None:
    config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rank = os.environ.get("RANK", "0")
    of_rank, _, moment = sys.argv[2].rpartition("/")
    if of_rank in ("", rank):
        prepare(moment)
    try:
        run(config)
    except SpecpipeError as error:
        if not error.already_reported:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
