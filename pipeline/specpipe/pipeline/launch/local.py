"""Workers as processes of this machine, each with an engine of its own."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from specpipe.pipeline.launch.devices import engine_environments, gpus_per_engine, visible_gpus
from specpipe.pipeline.launch.dump_worker import GRACE_SECONDS
from specpipe.pipeline.launch.exchange import Job, as_line
from specpipe.pipeline.launch.shard_queue import ShardQueue
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump_plan.prepared import Prepared
from specpipe.stages.process.activity import doing
from specpipe.stages.process.errors import error_of
from specpipe.stages.process.parent import with_this_parent

_LOOK_SECONDS = 1.0
"""How often dead workers are looked for whose output somebody else holds open."""
_END_SECONDS = 0.05
_PIECE_BYTES = 2**16


def execute(
    config: DumpConfig,
    prepared: Prepared,
    shard_ids: Sequence[int],
    advance: Callable[[int], None],
) -> None:
    """Make the shards in `config.workers` processes.

    A worker's error is raised here. A worker that dies is started again, and its shard is done by
    whoever is free; UnfinishedError where workers die one after the other.
    """
    environments = engine_environments(
        config,
        visible_gpus(config, os.environ),
        gpus_per_engine(config, prepared.identity.backend),
        len(os.sched_getaffinity(0)),
        os.environ,
    )
    job = Job(config=config, stamp=prepared.stamp)
    queue = ShardQueue(shard_ids, advance)
    with Crew(job, environments[: len(shard_ids)]) as crew:
        crew.work(queue)


class WorkerProcess:
    """One `python -m specpipe.pipeline.launch.dump_worker`."""

    def __init__(self, name: str, job: Job, environment: Mapping[str, str]) -> None:
        self.name = name
        self.shard_id: int | None = None
        """The shard that it works on."""
        self._partial = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "specpipe.pipeline.launch.dump_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=with_this_parent(environment),
            # An interrupt of the terminal is ours to pass on; and its engine's own processes can
            # be ended with it.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self._tell(job.to_json().replace(b"\n", b" ") + b"\n")

    def start(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self._tell(as_line({"shard": shard_id}))

    def answers(self) -> list[dict[str, Any]] | None:
        """What it has said since; None where there is nothing, and nothing will come."""
        piece = b""
        # A process of its engine may hold the pipe open after its end.
        with suppress(BlockingIOError):
            piece = os.read(self.output, _PIECE_BYTES)
        *lines, self._partial = (self._partial + piece).split(b"\n")
        return [json.loads(line) for line in lines] if piece else None

    def has_ended(self) -> bool:
        # It keeps its number, which is also its group's, until `end` takes note of it.
        look = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self._process.pid, look) is not None

    def how_it_ended(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        hint = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"

    def dismiss(self) -> None:
        """Let it close its engine and end."""
        self._tell(as_line({"stop": True}))

    def interrupt(self) -> None:
        os.kill(self._process.pid, signal.SIGTERM)

    def end(self, deadline: float) -> None:
        """Wait for its end until `deadline` (monotonic), then kill what is left of it."""
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(_END_SECONDS)
        # Its engine may have processes, which outlive a worker that was killed.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        # One that is dead by now is noticed by its output.
        with suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()


class Crew:
    """The workers of one command; all end with the context."""

    def __init__(self, job: Job, environments: Sequence[Mapping[str, str]]) -> None:
        self._job = job
        self._environments = environments
        self._workers: list[WorkerProcess] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.dismiss() if kind is None else worker.interrupt()
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in self._workers:
            worker.end(deadline)
        self._selector.close()

    def work(self, queue: ShardQueue) -> None:
        """Until every shard of the queue is finished."""
        for index in range(len(self._environments)):
            self._hire(index)
        while not queue.is_done:
            self._hand_out(queue)
            readable = {key.data for key, _ in self._selector.select(_LOOK_SECONDS)}
            for worker in list(self._workers):
                if worker in readable or worker.has_ended():
                    self._listen(worker, queue)

    def _hire(self, index: int) -> None:
        worker = WorkerProcess(f"worker {index}", self._job, self._environments[index])
        self._workers.insert(index, worker)
        self._selector.register(worker.output, selectors.EVENT_READ, worker)

    def _hand_out(self, queue: ShardQueue) -> None:
        for worker in self._workers:
            if worker.shard_id is None and (shard_id := queue.next()) is not None:
                worker.start(shard_id)

    def _listen(self, worker: WorkerProcess, queue: ShardQueue) -> None:
        answers = worker.answers()
        if answers is None:
            self._replace(worker, queue)
            return
        for answer in answers:
            if "error" in answer:
                raise error_of(answer, worker.name)
            if "doing" in answer:
                doing(answer["doing"])
            elif "finished" in answer:
                queue.finish(answer["finished"])
                worker.shard_id = None
            elif worker.shard_id is not None:
                queue.report(worker.shard_id, answer["tokens"])

    def _replace(self, worker: WorkerProcess, queue: ShardQueue) -> None:
        self._selector.unregister(worker.output)
        index = self._workers.index(worker)
        self._workers.remove(worker)
        worker.end(time.monotonic() + GRACE_SECONDS)
        queue.lose(worker.name, worker.shard_id, worker.how_it_ended())
        self._hire(index)
