"""Train in processes that come to harm, one after the other; a program, not a test.

    python -m tests.train.train_chain CONFIG.json MOMENT [MOMENT ...]

Each moment is that of a process of its own (as `train_killed` has them), which goes on where the
one before it was killed; their exit codes are printed, one a line. One program forks them all: what
takes long in so short a run is the import of torch.
"""

import os
import sys
import traceback

from tests.train import train_killed


def train(file: str, moment: str) -> int:
    """Exit code of a child that trains; minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        sys.argv = ["train_killed.py", file, moment]
        try:
            train_killed.main()
        except BaseException:
            traceback.print_exc()
            os._exit(9)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for one in sys.argv[2:]:
        print(train(sys.argv[1], one), flush=True)
