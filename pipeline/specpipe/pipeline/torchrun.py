"""torchrun, but for its exit code: that of the rank that failed, where torchrun's own is always 1.

python -m specpipe.pipeline.torchrun --nproc-per-node 8 -m specpipe train ...
"""

import signal
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import NoReturn

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from specpipe.pipeline.terminal.console import fail
from specpipe.schemas.errors import UnfinishedError

SAVE_SECONDS = 900
"""How long ranks that are asked to stop may take to save; whoever asked may well be less patient.
torchrun's own 30 seconds are too few for the checkpoint of a large drafter."""


def main(arguments: Sequence[str]) -> None:
    """Run the ranks of this machine; ends the process with their exit code."""
    signal.signal(signal.SIGTERM, _stop)
    settings = ["--shutdown-timeout", str(SAVE_SECONDS), "--signals-to-handle", "SIGINT,SIGHUP"]
    try:
        run(parse_args([*settings, *arguments]))
    except ChildFailedError as error:
        end_as(error.failures.values())
    except SignalException:
        # Each rank has saved, and said so.
        sys.exit(UnfinishedError.exit_code)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """torchrun's own way to end the ranks, but once: it must not be interrupted while they save."""
    signal.signal(number, signal.SIG_IGN)
    raise SignalException("asked to stop", signal.Signals(number))


def end_as(failures: Iterable[ProcessFailure]) -> NoReturn:
    """End with the exit code of the rank that failed by itself; the others lost it, and say 5."""
    cause = min(failures, key=_order)
    if cause.exitcode > 0:
        sys.exit(cause.exitcode)
    # It could not say anything.
    fail(
        UnfinishedError(
            f"process {cause.local_rank} of this training was ended by"
            f" {signal.Signals(-cause.exitcode).name}; run the same command again to continue from"
            " the last checkpoint"
        )
    )


def _order(failure: ProcessFailure) -> int:
    """Of errors, deaths and their consequences: what comes first is the cause of the others."""
    if failure.exitcode == UnfinishedError.exit_code:
        return 2
    return 1 if failure.exitcode < 0 else 0


if __name__ == "__main__":
    main(sys.argv[1:])
