"""End a process when its parent process has ended, for whatever reason."""

import os
import select
import threading
import time
from collections.abc import Callable, Mapping

_VARIABLE = "SPECPIPE_PARENT_PID"
"""Environment variable: the process with whose end a process of ours ends."""
_LOOK_SECONDS = 1.0


def with_this_parent(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process of ours that is to end with this one."""
    return {**environment, _VARIABLE: str(os.getpid())}


def end_with_the_parent(let_go: Callable[[], None] | None = None) -> None:
    """End this process with the one that started it by `with_this_parent`, if one did; `let_go` is
    called before."""
    pid = os.environ.pop(_VARIABLE, "")
    if pid.isdecimal():
        end_with_parent(int(pid), let_go)


def end_with_parent(pid: int, let_go: Callable[[], None] | None = None) -> None:
    """End this process as soon as the process `pid` has ended; a thread waits for that."""

    def watch() -> None:
        _wait(pid)
        if let_go is not None:
            let_go()
        os._exit(1)

    if pid != os.getpid():
        threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _wait(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # Kernels before 5.3, and sandboxes that do not know the call.
        while _lives(pid):
            time.sleep(_LOOK_SECONDS)
    else:
        select.select([descriptor], [], [])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
