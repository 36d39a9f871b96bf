"""One trial at one rung: an ordinary training run, and what it came to."""

import math
from dataclasses import dataclass
from pathlib import Path

from specpipe.pipeline.tune.material import Material
from specpipe.schemas.errors import DivergedError
from specpipe.schemas.records.tune import Settings, TrialScore
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.train.loop import MOST_STEPS_AT_RISK, Progress
from specpipe.stages.train.run import run

_CHECKPOINTS = 3


@dataclass(frozen=True, slots=True)
class TrialRun:
    """Trains with some settings in place of the recipe's."""

    recipe: ResolvedTrainConfig
    eval_tokens: int
    is_greedy: bool
    """Whether tau is that of greedy decoding, as the text is."""

    @classmethod
    def of(cls, material: Material) -> "TrialRun":
        text = material.evaluated_on.text
        return cls(material.recipe, material.eval_tokens, text.is_greedy)

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
        return ResolvedTrainConfig.model_validate(self.recipe.flat() | settings | changes)

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

    def train(self, config: ResolvedTrainConfig, progress: Progress) -> TrialScore:
        """Train, or go on; a run that diverges counts as tau 0. Raises what training raises."""
        try:
            result = run(config, progress=progress)
        except DivergedError:
            return TrialScore(steps=config.max_steps or 0, tau=0.0, tau_low=0.0, tau_high=0.0)
        curve = result.best.replay(is_greedy=self.is_greedy)
        return TrialScore(
            steps=result.steps,
            tau=curve.tau[-1],
            tau_low=curve.tau_low[-1],
            tau_high=curve.tau_high[-1],
        )
