"""Processes that this one starts end with it, also where it is killed."""

import os

_VARIABLE = "SPECPIPE_PARENT_PID"
"""Environment variable: the process with whose end a command of specpipe ends."""


def with_this_parent() -> dict[str, str]:
    """The environment of a command of specpipe that is to end with this process."""
    return os.environ | {_VARIABLE: str(os.getpid())}


def end_with_the_parent() -> None:
    """End this process with the one that started it by `with_this_parent`, if one did."""
    pid = os.environ.pop(_VARIABLE, "")
    if pid.isdecimal():
        from specpipe.stages.process.parent import end_with_parent

        end_with_parent(int(pid))
