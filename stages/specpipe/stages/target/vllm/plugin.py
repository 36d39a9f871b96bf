"""vLLM's plugin hook, called in each of its processes; it acts only where it is asked to.

`SPECPIPE_VLLM_CAPTURE=1` is set for the engines of a dump, `SPECPIPE_VLLM_AUX_STATES` by whoever
serves a drafter that reads auxiliary states of a target that vLLM gives none of
(support/families.py), `SPECPIPE_VLLM_CPU_FIX=1` for our engines on a CPU (repairs/register.py).
"""

import os

from specpipe.schemas.tested import TESTED, is_tested
from specpipe.stages.target.vllm.repairs import register as repairs
from specpipe.stages.target.vllm.support.families import DUMPED, ENVIRONMENT, FAMILIES
from specpipe.stages.target.vllm.support.servable import installed_version, is_asked_for

CAPTURE = "SPECPIPE_VLLM_CAPTURE"


def register() -> None:
    repairs.register()
    wanted = [name for name in FAMILIES if is_asked_for(name)]
    if os.environ.get(CAPTURE) == "1":
        wanted = sorted(DUMPED)
    if not wanted:
        return
    version = installed_version()
    if version is None or not is_tested("vllm", version):
        from vllm.logger import init_logger

        init_logger("vllm.specpipe").warning(
            "specpipe stays out: %s is asked for, but this is vLLM %s, and it is tried with %s",
            ENVIRONMENT,
            version,
            TESTED["vllm"],
        )
        return
    from specpipe.stages.target.vllm.support import aux_state_models

    aux_state_models.register(wanted)
