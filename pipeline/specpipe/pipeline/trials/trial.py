"""A trial: an ordinary training run of some steps, with some settings in place of the recipe's."""

import math
from dataclasses import dataclass
from pathlib import Path

from specpipe.schemas.records.tune import Settings
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.train.loop import MOST_STEPS_AT_RISK

_CHECKPOINTS = 3


@dataclass(frozen=True, slots=True)
class TrialRun:
    """Trains with some settings in place of the recipe's."""

    recipe: ResolvedTrainConfig
    eval_tokens: int

    def config(self, settings: Settings, steps: int, out: Path) -> ResolvedTrainConfig:
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
        return ResolvedTrainConfig.model_validate(self.recipe.model_dump() | settings | changes)

    def steps(self, settings: Settings, steps: int) -> int:
        """Steps on as many tokens as `steps` of the recipe's size have."""
        size = "batch_tokens" if self.recipe.batch_size is None else "batch_size"
        own: int = getattr(self.recipe, size)
        return max(1, round(steps * own / int(settings.get(size, own))))

    @property
    def pack_tokens(self) -> int | None:
        """A step of twice the size takes no more memory than the recipe's."""
        if self.recipe.pack_tokens is not None or self.recipe.batch_size is not None:
            return self.recipe.pack_tokens
        return self.recipe.batch_tokens
