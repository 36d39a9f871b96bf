"""Two processes of one run, as torchrun starts them, without importing everything anew."""

import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import torch

from specpipe.schemas.settings.train import TrainConfig
from tests.train import train_killed

SECONDS = 600
"""After which a run that has not ended hangs."""


def train(config: TrainConfig, moment: str = "none") -> tuple[list[int], str]:
    """Exit codes of both (-N: by signal N), and what they wrote on stderr."""
    file = Path(config.out).with_suffix(".json")
    file.write_text(config.model_dump_json())
    # Its server imports once what every process needs, and has not computed anything.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.train_killed"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [file.with_suffix(f".{rank}.log") for rank in range(2)]
    processes = [
        context.Process(target=_rank, args=(rank, port, str(file), moment, str(log)))
        for rank, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
        process.join()
    said = "".join(log.read_text(encoding="utf-8") for log in logs)
    assert not hanging, said
    return [process.exitcode or 0 for process in processes], said


def _rank(rank: int, port: int, file: str, moment: str, log: str) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    sys.argv = ["train_killed.py", file, moment]
    train_killed.main()
