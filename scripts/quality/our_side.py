"""Our side of a cell: `specpipe train` in a process of its own, its training seconds counted."""

import time
from dataclasses import dataclass, field

from scripts.bench.child import Values, serve_parent
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.train.run import run


@dataclass
class Clock:
    """Seconds of the optimiser steps alone: evaluations end with a report of their own."""

    cpu: float = 0.0
    wall: float = 0.0
    _last: tuple[float, float] = field(default_factory=lambda: (time.process_time(), time.time()))

    def progress(self, _step: int, _total: int, figures: dict[str, float]) -> None:
        now = time.process_time(), time.time()
        if "loss" in figures:
            self.cpu += now[0] - self._last[0]
            self.wall += now[1] - self._last[1]
        self._last = now


def answer(asked: Values) -> Values:
    clock = Clock()
    result = run(TrainConfig(**asked), progress=clock.progress)
    return {
        "steps": result.steps,
        "num_tokens": result.num_tokens,
        "cpu_seconds": clock.cpu,
        "seconds": clock.wall,
        "best_step": result.best_step,
    }


if __name__ == "__main__":
    serve_parent(answer)
