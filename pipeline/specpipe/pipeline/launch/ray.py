"""Workers as actors of a Ray cluster: the one of RAY_ADDRESS, or else one of this machine.

Actors take and give strings of JSON. Target and output must be where every node reaches them.
"""

import json
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from specpipe.pipeline.launch.devices import gpus_per_engine
from specpipe.pipeline.launch.dump_worker import GRACE_SECONDS, ShardMaker
from specpipe.pipeline.launch.exchange import Job
from specpipe.pipeline.launch.shard_queue import ShardQueue
from specpipe.pipeline.machine_faults import machine_fault
from specpipe.pipeline.terminal.console import note
from specpipe.schemas.errors import ConfigError, EngineLostError, SpecpipeError, StoreError
from specpipe.schemas.extras import install_hint
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump_plan.prepared import Prepared
from specpipe.stages.process.errors import error_of, error_record

OBJECT_STORE_BYTES = 80 * 2**20
"""Of a cluster that is started here: only short strings go through it. Ray takes no less."""

_WAIT_SECONDS = 30.0
_REACH_SECONDS = 10.0


def execute(
    config: DumpConfig,
    prepared: Prepared,
    shard_ids: Sequence[int],
    advance: Callable[[int], None],
) -> None:
    """Make the shards in `config.workers` actors, one engine in each.

    An actor's error is raised here. The shard of an actor that is lost is done by another one.
    Raises ConfigError where Ray is not installed, or the cluster has no room for the engines.
    """
    if find_spec("ray") is None:
        raise ConfigError(f"--executor ray needs Ray: {install_hint('ray')}")
    job = Job(config=_from_anywhere(config), stamp=prepared.stamp)
    with _cluster() as ray:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if len(nodes) > 1 and "://" not in config.out:
            note(f"{config.out} is a folder: all {len(nodes)} nodes of the cluster must share it")
        resources = _resources(config, prepared.identity.backend, nodes)
        _Crew(ray, job, resources, min(config.workers, len(shard_ids))).work(
            ShardQueue(shard_ids, advance), lambda shard_id: _num_tokens(prepared, shard_id)
        )


class Engine:
    """The engine of an actor."""

    def __init__(self, job: str) -> None:
        self._maker = ShardMaker(job)

    def ready(self) -> None:
        """Answers as soon as the actor has its place."""

    def make(self, shard_id: int) -> str:
        """Commit a shard; {} or an error, as JSON."""
        try:
            self._maker.make(shard_id, lambda num_tokens: None)
        except EngineLostError as error:
            # The actor goes with its engine: the command starts another one, and says so.
            note(f"specpipe: {error}")
            os._exit(error.exit_code)
        except SpecpipeError as error:
            return json.dumps(error_record(error))
        except Exception as error:
            note(traceback.format_exc())
            return json.dumps(error_record(machine_fault(error) or error))
        return "{}"

    def close(self) -> None:
        self._maker.close()


class _Crew:
    """The actors of one command."""

    def __init__(self, ray: Any, job: Job, resources: dict[str, float], num_engines: int) -> None:
        self._ray = ray
        self._job = job.to_json().decode()
        self._class = ray.remote(max_restarts=0, **resources)(Engine)
        self._actors: dict[str, Any] = {}
        self._names = [f"engine {index}" for index in range(num_engines)]
        # What is awaited of whom, and of which shard.
        self._awaited: dict[Any, tuple[str, int | None]] = {}

    def work(self, queue: ShardQueue, num_tokens: Callable[[int], int]) -> None:
        """Until every shard of the queue is finished; a shard waits for nobody without a place."""
        idle: set[str] = set()
        try:
            for name in self._names:
                self._hire(name)
            while not queue.is_done:
                while idle and (shard_id := queue.next()) is not None:
                    name = idle.pop()
                    self._awaited[self._actors[name].make.remote(shard_id)] = (name, shard_id)
                done, _ = self._ray.wait([*self._awaited], timeout=_WAIT_SECONDS)
                if (
                    not done
                    and len(idle) == 0
                    and all(i is None for _, i in self._awaited.values())
                ):
                    note("no engine has a place yet: the cluster is busy or still starting")
                for reference in done:
                    name, of_shard = self._awaited.pop(reference)
                    if self._take(name, reference, of_shard, queue, num_tokens):
                        idle.add(name)
            self._dismiss()
        finally:
            for actor in self._actors.values():
                self._ray.kill(actor)

    def _hire(self, name: str) -> None:
        self._actors[name] = self._class.remote(self._job)
        self._awaited[self._actors[name].ready.remote()] = (name, None)

    def _take(
        self,
        name: str,
        reference: Any,
        shard_id: int | None,
        queue: ShardQueue,
        num_tokens: Callable[[int], int],
    ) -> bool:
        """What an actor has answered; False where it is lost, and another one is on its way."""
        try:
            answer = json.loads(self._ray.get(reference) or "{}")
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise ConfigError(
                    f"{name} cannot start on its node: {str(error).strip().splitlines()[-1]}; "
                    "every node of the Ray cluster needs the specpipe of this command"
                ) from None
            reason = str(error).splitlines()[0]
            queue.lose(name, shard_id, f"{type(error).__name__}: {reason}")
            self._hire(name)
            return False
        if "error" in answer:
            raise error_of(answer, name)
        if shard_id is not None:
            queue.report(shard_id, num_tokens(shard_id))
            queue.finish(shard_id)
        return True

    def _dismiss(self) -> None:
        """Let the engines close; those that have no place yet have none."""
        waiting = {name for name, _ in self._awaited.values()}
        closing = [
            actor.close.remote() for name, actor in self._actors.items() if name not in waiting
        ]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=GRACE_SECONDS)


def cores_per_engine(cores_of_nodes: Sequence[int], num_engines: int) -> int:
    """The most cores that each engine can have. Raises ConfigError where there are too few."""
    for cores in range(max(cores_of_nodes, default=0), 0, -1):
        if sum(of_node // cores for of_node in cores_of_nodes) >= num_engines:
            return cores
    raise ConfigError(
        f"--workers {num_engines}: the Ray cluster has {sum(cores_of_nodes)} CPU cores in all"
    )


def _resources(
    config: DumpConfig, backend: str, nodes: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """What each engine asks of the cluster: GPUs where it has some, else cores."""
    num_gpus = sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
    if num_gpus and config.device != "cpu":
        each = gpus_per_engine(config, backend)
        if num_gpus < config.workers * each:
            raise ConfigError(
                f"--workers {config.workers} need {config.workers * each} GPUs, the Ray cluster "
                f"has {num_gpus}"
            )
        return {"num_gpus": each}
    cores = [int(node["Resources"].get("CPU", 0)) for node in nodes]
    return {"num_cpus": cores_per_engine(cores, config.workers)}


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected; a cluster that was started for this command ends with it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    ours: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    in_main = threading.current_thread() is threading.main_thread()
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", logging_level="error", **({} if address else ours))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise StoreError(
            f"cannot reach the Ray cluster {address or 'of this machine'}: {error}"
        ) from error
    if in_main:
        # Ray takes the signal for itself.
        signal.signal(signal.SIGTERM, on_term)
    try:
        yield ray
    finally:
        with suppress(Exception):
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise StoreError where nobody listens: Ray itself would try for five minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # `auto`, or a name that Ray knows.
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except OSError as error:
        raise StoreError(
            f"cannot reach the Ray cluster {address} of RAY_ADDRESS: {error}; run the same command "
            "again when it is up"
        ) from error


def _from_anywhere(config: DumpConfig) -> DumpConfig:
    """Actors work in folders of their own: relative paths would mean something else to them."""
    changes = {}
    if Path(config.target).expanduser().is_dir():
        changes["target"] = str(Path(config.target).expanduser().resolve())
    if "://" not in config.out:
        changes["out"] = str(Path(config.out).expanduser().resolve())
    return config.model_copy(update=changes)


def _num_tokens(prepared: Prepared, shard_id: int) -> int:
    return sum(sample.size for sample in prepared.plan[shard_id])
