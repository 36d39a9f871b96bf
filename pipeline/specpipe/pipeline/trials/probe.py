"""How long training takes here: measured by a short run, to plan a budget of time by."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from specpipe.pipeline.trials.trial import TrialRun
from specpipe.stages.runs.metric_rows import metric_rows
from specpipe.stages.train.loop import Progress
from specpipe.stages.train.run import run

_STEPS = 9


@dataclass(frozen=True, slots=True)
class Measured:
    seconds_per_step: float
    """Of the recipe's size."""
    seconds_per_run: float
    """What a run takes besides its steps: its start and its evaluations."""


def measure(
    trial: TrialRun, folder: Path, time_limit: float | None, progress: Progress
) -> Measured:
    """Train the recipe for a few steps. Raises UnfinishedError where the time is too short."""
    began = time.monotonic()
    config = trial.config({}, _STEPS, folder).model_copy(update={"time_limit": time_limit})
    run(config, progress=progress)
    seconds = time.monotonic() - began
    rows = metric_rows(folder)
    steps = [row["seconds"] for row in rows if "eval" not in row]
    evaluations = sum(row["seconds"] for row in rows if "eval" in row)
    # The first step is slower, and a run that a kill cut in two was shorter than a whole one.
    per_step = statistics.median(steps)
    return Measured(per_step, max(evaluations, seconds - per_step * len(steps)))
