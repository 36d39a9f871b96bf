"""A worker of a dump in a process of its own: `python -m specpipe.pipeline.launch.dump_worker`.

Standard input gives lines of JSON: the job, then {"shard": N} one by one, then {"stop": true}.
Standard output answers: {"tokens": n} and {"doing": ...} on the way, {"finished": N} behind each
shard, and {"error": ..., "kind": ...} before the process ends where something is wrong. The
process ends with the command, however that went.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from specpipe.pipeline.launch.exchange import Job, as_line
from specpipe.pipeline.machine_faults import machine_fault
from specpipe.pipeline.terminal.console import note, quiet_libraries
from specpipe.schemas.errors import EngineLostError, SpecpipeError, UnfinishedError
from specpipe.stages.process.activity import watched
from specpipe.stages.process.ending import end_without_a_search
from specpipe.stages.process.errors import error_record
from specpipe.stages.process.parent import end_with_the_parent

if TYPE_CHECKING:
    from specpipe.stages.dump.worker import Worker

GRACE_SECONDS = 10.0
"""Time to let go of the engine before the process is killed, and its own processes with it."""


class ShardMaker:
    """An engine that opens with its first shard."""

    def __init__(self, job: str) -> None:
        self._job = Job.model_validate_json(job)
        self._worker: Worker | None = None

    def make(self, shard_id: int, advance: Callable[[int], None]) -> None:
        """Commit a shard; `advance` takes the tokens that are done."""
        if self._worker is None:
            self._worker = self._open(shard_id)
        self._worker.make(shard_id, advance)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def _open(self, first: int) -> "Worker":
        quiet_libraries()
        from specpipe.stages.dump.worker import Worker
        from specpipe.stages.dump_plan.prepared import join

        config = self._job.config
        return Worker(config, join(config, self._job.stamp), first)


def main() -> None:
    # What libraries print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    # An interrupt closes the engine on its way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end_with_the_parent(_let_go)
    end_without_a_search()

    def answer(**record: Any) -> None:
        # Where nobody listens any more, the input has ended too.
        with suppress(BrokenPipeError):
            answers.write(as_line(record))

    maker = None
    try:
        maker = ShardMaker(sys.stdin.readline())
        with watched(lambda what: answer(doing=what)):
            while "shard" in (order := json.loads(sys.stdin.readline() or "{}")):
                shard_id = order["shard"]
                maker.make(shard_id, lambda num_tokens: answer(tokens=num_tokens))
                answer(finished=shard_id)
    except EngineLostError as error:
        # As if the worker had died with it: the command starts another one, and says so.
        note(f"specpipe: {error}")
        sys.exit(error.exit_code)
    except SpecpipeError as error:
        answer(**error_record(error))
        sys.exit(error.exit_code)
    except Exception as error:
        note(traceback.format_exc())
        answer(**error_record(machine_fault(error) or error))
        sys.exit(SpecpipeError.exit_code)
    finally:
        # It is on its way out already.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if maker is not None:
            maker.close()


def _let_go() -> None:
    """The command is gone: close the engine, and end what is left of it with this process."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(UnfinishedError.exit_code)
