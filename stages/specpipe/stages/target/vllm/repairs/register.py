"""The repairs, in the processes of our own engines.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). It does nothing
unless the environment variable `SPECPIPE_VLLM_CPU_FIX` is 1, and vLLM is its CPU build. Each repair
tries first whether the fault is there: a vLLM without it stays as it is.
"""

import os

ENVIRONMENT = "SPECPIPE_VLLM_CPU_FIX"

_made: list[str] = []


def register() -> None:
    """vLLM's plugin hook: repair what is asked for, and what is wrong."""
    if os.environ.get(ENVIRONMENT) != "1":
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from specpipe.stages.target.vllm.repairs import expansion, layered_norm, text_positions

    current_platform.import_kernels()
    _made.extend(
        module.__name__.rpartition(".")[2]
        for module in (expansion, layered_norm, text_positions)
        if module.repair()
    )


def made() -> list[str]:
    """What was repaired in this process, by the names of the modules here."""
    return list(_made)
