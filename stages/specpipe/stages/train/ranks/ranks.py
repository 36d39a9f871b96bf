"""The processes (ranks) of one run: sums, messages, and errors that end them together.

`torchrun` starts one process (a rank) per device. What ranks exchange for the run's sake (flags,
errors, metrics) goes through gloo between CPUs, also where the gradients go through NCCL, and is
patient: another rank may read a whole dump or wait for a slow store. A rank that dies closes its
connections, which ends at once those that wait for it in gloo. Those that wait in NCCL are ended by
its watchdog, when and how that decides.
"""

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from specpipe.schemas.errors import ConfigError, SpecpipeError, UnfinishedError
from specpipe.stages.process.device import choose_device
from specpipe.stages.process.errors import error_of, error_record

BUCKET_BYTES = 64 * 2**20
"""Gradients are summed in pieces of this size."""
STUCK = timedelta(minutes=30)
"""How long a sum over ranks that all compute may take."""
PATIENCE = timedelta(days=1)
"""How long ranks wait for one that reads."""

_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables by which the processes of a run find each other."""

_OF_AN_EXCHANGE = re.compile("gloo|nccl|connection (closed|reset)", re.IGNORECASE)
"""Gloo's errors are plain RuntimeErrors."""


@dataclass(slots=True)
class RankAgreement:
    """What the ranks agree on."""

    reason: str | None = None
    """To stop, if there is one."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its run."""

    device: torch.device
    rank: int = 0
    size: int = 1
    patient: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and speaks for all."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        if self.size > 1:
            with lost():
                dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum whole gradients over the ranks, in place; a rank that has none adds nothing."""
        if self.size == 1:
            return
        for bucket in _buckets(parameters):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            pieces = self.sum(flat).split([gradient.numel() for gradient in bucket])
            for gradient, piece in zip(bucket, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def gather(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, on every rank."""
        if self.size == 1:
            return [data]
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        mine = torch.zeros(0, dtype=torch.uint8)
        with lost():
            dist.all_reduce(sizes, group=self.patient)
            mine = torch.zeros(int(sizes.max()), dtype=torch.uint8)
            mine[: len(data)] = _tensor(data)
            found = [torch.empty_like(mine) for _ in range(self.size)]
            dist.all_gather(found, mine, group=self.patient)
        return [_bytes(t[:n]) for t, n in zip(found, sizes.tolist(), strict=True)]

    def of_first(self, make: Callable[[], bytes]) -> bytes:
        """What the first rank makes, on every rank; its error is everybody's."""
        data = b""
        with self.together():
            if self.is_first:
                data = make()
        return data if self.size == 1 else self._broadcast(data, 0)

    @contextmanager
    def together(self) -> Iterator["RankAgreement"]:
        """What is done inside fails on all ranks or on none. It must not need the other ranks.

        A reason to stop that one of them gives inside is everybody's afterwards.
        """
        agreement = RankAgreement()
        error: Exception | None = None
        try:
            yield agreement
        except Exception as raised:
            error = raised
        agreement.reason = self._agree(error, agreement.reason)

    def _agree(self, error: Exception | None, reason: str | None) -> str | None:
        """Raise where any rank has an error: there the error itself, elsewhere one like it."""
        if self.size == 1:
            if error is not None:
                raise error
            return reason
        flags = torch.zeros(2, self.size, dtype=torch.int64)
        flags[0, self.rank], flags[1, self.rank] = error is not None, reason is not None
        with lost():
            dist.all_reduce(flags, group=self.patient)
        if flags[0].any():
            owner = int(flags[0].nonzero()[0])
            record = {} if error is None else error_record(error)
            sent = self._broadcast(json.dumps(record).encode(), owner)
            if error is not None and owner == self.rank:
                raise error
            alike = error_of(json.loads(sent), "another process")
            alike.already_reported = True
            raise alike from error
        if flags[1].any():
            return self._broadcast((reason or "").encode(), int(flags[1].nonzero()[0])).decode()
        return None

    def _broadcast(self, data: bytes, owner: int) -> bytes:
        size = torch.tensor(len(data))
        with lost():
            dist.broadcast(size, owner, group=self.patient)
            buffer = torch.zeros(int(size), dtype=torch.uint8)
            if self.rank == owner:
                buffer = _tensor(data)
            dist.broadcast(buffer, owner, group=self.patient)
        return _bytes(buffer)


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """This process among those that `torchrun` started, or alone where it started none.

    Raises ConfigError for a device that this process has not, and where something else than
    `torchrun` started it as one of several.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        yield Ranks(choose_device(device))
        return
    if missing := [name for name in _OF_TORCHRUN if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {missing[0]} is not set: start it with torchrun"
            " --nproc-per-node N -m specpipe train ..., or unset WORLD_SIZE for one process alone"
        )
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    own = choose_device(device)
    if own.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine has no GPU: there are"
                f" {torch.cuda.device_count()}; start fewer with torchrun --nproc-per-node"
            )
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    # A meeting's keys stay in the store: a later run of these processes takes others.
    meeting = PrefixStore(f"run-{next(_MEETINGS)}", _store())
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=size, timeout=STUCK)
    try:
        yield Ranks(own, rank, size, dist.new_group(backend="gloo", timeout=PATIENCE))
    finally:
        # torchrun sends it to the others once the first one has ended: each ends with its own
        # exit code.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        dist.destroy_process_group()


_MEETINGS = count()
"""Runs of these processes so far: each of them counts the same."""


@cache
def _store() -> Store:
    """Where the processes that torchrun started find each other; one for all of their runs."""
    store: Store = next(rendezvous("env://", timeout=STUCK))[0]
    return store


@contextmanager
def lost() -> Iterator[None]:
    """Say what it is where an exchange between the ranks fails: one of them died or hangs."""
    try:
        yield
    except SpecpipeError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _OF_AN_EXCHANGE.search(str(error)):
            raise
        raise UnfinishedError(
            f"lost the other processes of this run ({str(error).split('. This is typically')[0]});"
            " run the same command again to continue from the last checkpoint"
        ) from error


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    num_bytes = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        num_bytes += parameter.grad.nbytes
        if num_bytes >= BUCKET_BYTES:
            yield bucket
            bucket, num_bytes = [], 0
    if bucket:
        yield bucket


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0).byte()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
