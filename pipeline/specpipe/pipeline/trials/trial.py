"""A trial: an ordinary training run of some steps, with some settings in place of the recipe's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from specpipe.schemas.records.tune import Settings, ShortRun
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.train.loop import MOST_STEPS_AT_RISK

_CHECKPOINTS = 3


def step_size(recipe: ResolvedTrainConfig) -> str:
    """The setting that the size of a step is counted by."""
    return "batch_tokens" if recipe.batch_size is None else "batch_size"


@dataclass(frozen=True, slots=True)
class TrialRun:
    """Trains with some settings in place of the recipe's."""

    recipe: ResolvedTrainConfig
    eval_tokens: int
    pass_steps: Mapping[int, int] = field(default_factory=dict)
    """Steps of a pass over the data, by the size of a step."""

    def config(
        self, settings: Settings, steps: int, out: Path, short_run: ShortRun | None = None
    ) -> ResolvedTrainConfig:
        """`steps` are of the recipe's size: with larger ones a trial takes fewer."""
        own = self.steps(settings, steps)
        name = self.recipe.log_name
        changes = {
            "out": str(out),
            "max_steps": own,
            # An evaluation takes long beside a short run; the end of the schedule is its best.
            "eval_every": own,
            "checkpoint_every": self.recipe.checkpoint_every
            or min(math.ceil(own / _CHECKPOINTS), MOST_STEPS_AT_RISK),
            "eval_tokens": self.eval_tokens,
            "keep_checkpoints": 1,
            # The search has looked at the dumps.
            "preverify": "metadata",
            "pack_tokens": self.pack_tokens,
            "log_name": None if name is None else f"{name}-{out.name}",
        }
        values = self.recipe.model_dump() | settings | changes
        if short_run is not None:
            values |= short_run.settings
            for rate in ("learning_rate", "muon_learning_rate"):
                if values[rate] is not None:
                    values[rate] *= short_run.rate_times
        return ResolvedTrainConfig.model_validate(values)

    def steps(self, settings: Settings, steps: int) -> int:
        """Steps on as much text as `steps` of the recipe's size have."""
        size = step_size(self.recipe)
        own: int = getattr(self.recipe, size)
        other = int(settings.get(size, own))
        times = own / other
        if self.pass_steps.keys() >= {own, other}:
            times = self.pass_steps[other] / self.pass_steps[own]
        return max(1, round(steps * times))

    @property
    def pack_tokens(self) -> int | None:
        """A step of twice the size takes no more memory than the recipe's."""
        if self.recipe.pack_tokens is not None or self.recipe.batch_size is not None:
            return self.recipe.pack_tokens
        return self.recipe.batch_tokens
