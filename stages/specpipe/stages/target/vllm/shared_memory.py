"""vLLM's need of /dev/shm, and whether a lack of it kept vLLM from starting."""

import os
import shutil
from pathlib import Path

PLACE = Path("/dev/shm")
_CHUNKS = 10
_CHUNK_MIB = 16
"""Of the queue between vLLM's processes, as VLLM_MQ_MAX_CHUNK_BYTES_MB has it by default."""


def shortage() -> str | None:
    """What to do about a /dev/shm that is too small for an engine; None where it is not.

    A single process on a GPU needs none of it: this is asked after an engine has failed.
    """
    needed = _CHUNKS * int(os.environ.get("VLLM_MQ_MAX_CHUNK_BYTES_MB", _CHUNK_MIB)) * 2**20
    try:
        free = shutil.disk_usage(PLACE).free
    except OSError:
        return None
    if free >= needed:
        return None
    return (
        f"vLLM needs {needed >> 20} MiB of {PLACE} for its processes, and {free >> 10:,} KiB are"
        " free: make it larger (docker run --shm-size=1g; in Kubernetes an emptyDir with medium:"
        " Memory), and run the same command again"
    )
