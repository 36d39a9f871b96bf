"""Memory of the training process."""

import os
import resource
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from specpipe.stages.process.gpu_memory import enough_gpu_memory

_STATM = Path("/proc/self/statm")


def enough_memory(what: str) -> AbstractContextManager[None]:
    """Raise ConfigError where `what` is done inside and the GPU's memory does not suffice."""
    return enough_gpu_memory(
        what,
        "lower --pack-tokens or --loss-chunk-mib, or give --activation-checkpointing or"
        " --embedding-on-cpu, in the same --out",
    )


def memory_mib(device: torch.device) -> float:
    """MiB: on a GPU the most that tensors have taken there so far, else the process's resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
