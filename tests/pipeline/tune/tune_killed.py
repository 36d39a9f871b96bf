"""Search in processes that come to harm at given moments; a program, not a test.

    python tune_killed.py CONFIG.json MOMENT [MOMENT ...]

Each moment is that of a process of its own (as `train_killed` has them), which goes on where the
one before it was killed; their exit codes are printed, one a line. One program forks them all: what
takes long in so short a search is the import of torch.
"""

import os
import sys
from pathlib import Path

from specpipe.pipeline.tune import halving
from specpipe.pipeline.tune.search import tune
from specpipe.schemas.settings.tune import TuneConfig
from tests.train.train_killed import prepare

LEAST_STEPS = 4
"""A search in a test is a short one."""


def search(config: TuneConfig, moment: str) -> int:
    """Exit code of a child that searches; minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        prepare(moment)
        tune(config, progress=lambda *_: None, say=lambda _: None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    halving.LEAST_STEPS = LEAST_STEPS
    config = TuneConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for moment in sys.argv[2:]:
        print(search(config, moment), flush=True)


if __name__ == "__main__":
    main()
