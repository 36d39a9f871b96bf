"""A process ends when the one that started it is gone, however it went."""

import os
import select
import threading
import time

_LOOK_SECONDS = 1.0


def end_with_parent(pid: int) -> None:
    """End this process as soon as the process `pid` has ended; a thread waits for that."""
    if pid != os.getpid():
        threading.Thread(target=_watch, args=(pid,), daemon=True, name="end-with-parent").start()


def _watch(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)
    except OSError:  # Kernels before 5.3, and sandboxes that do not know the call.
        while _lives(pid):
            time.sleep(_LOOK_SECONDS)
    else:
        select.select([descriptor], [], [])
    os._exit(1)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
