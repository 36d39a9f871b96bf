"""vLLM's plugin hook, called in each of its processes; it acts only where it is asked to."""

import os

from specpipe.stages.target.vllm import cpu_fix

CAPTURE = "SPECPIPE_VLLM_CAPTURE"
"""Set to 1 for the engines of a dump."""


def register() -> None:
    cpu_fix.register()
    if os.environ.get(CAPTURE) == "1":
        from specpipe.stages.target.vllm import hooked_models

        hooked_models.register()
