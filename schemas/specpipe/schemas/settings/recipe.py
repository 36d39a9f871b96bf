"""The recipe: the defaults of `specpipe train` that follow from the data.

A pure function of the configuration and of a few facts of the data. Every number stands here.
"""

import math
from dataclasses import dataclass
from typing import Any

from specpipe.schemas.records.checkpoint import RunRecipe
from specpipe.schemas.records.tune import ShortRun
from specpipe.schemas.settings.train import PresetName, ResolvedTrainConfig, TrainConfig


@dataclass(frozen=True, slots=True)
class Budget:
    """Number of steps of a run, and how often it may pass over its data for them."""

    steps: int
    """Least number of steps, if `most_epochs` passes over the data have as many."""
    most_steps: int | None
    """Most steps; None: as many as `least_epochs` passes have."""
    least_epochs: int
    most_epochs: int
    largest_step: int
    """Most tokens of a step."""
    eval_tokens: int


BUDGETS: dict[PresetName, Budget] = {
    # To see that everything works.
    "quick": Budget(100, 100, 1, 10, 2048, 12_000),
    # Half of what a drafter gains it has after some hundreds of steps.
    "default": Budget(2000, None, 2, 10, 8192, 100_000),
    # The last per cents, for several times the time.
    "best": Budget(5000, None, 4, 20, 8192, 100_000),
}

ENOUGH = 2
"""A run with this many times the steps of its budget passes over its data no more often."""
SMALLEST_STEP = 512
"""Least tokens of a step; with fewer, too few starts decide its gradient."""
MANY_STEPS = 10_000
"""Number of steps of `largest_step` tokens beyond which steps become larger instead of more."""
LARGEST_STEP = 32_768
"""Most tokens of a step, however much data there is."""
PASS_TOKENS = 8192
"""Tokens of one forward and backward pass of steps that are larger: it bounds the memory. An
evaluation has as many where a step is so many samples."""

MUON_RATE = 3e-3
"""Muon's learning rate for steps of as many tokens as the drafter is wide. It grows with the root
of the tokens, for larger steps are less noisy, and falls with the root of the width, as the weights
do: at every width, a step changes them by the same share."""
MOST_MUON_TOKENS = 2048
"""Tokens of a step beyond which the rate grows no more."""
MOST_MUON_RATE = 0.01
"""Largest rate of Muon, for very narrow drafters, in runs that are not short."""
SHORT_RUN = 360
"""Number of steps below which Muon's rate is higher, with the root of how much fewer they are: a
step has one size, and few of them do not go far enough from the first weights. Weights that were
trained before are near their place, and keep the rate."""
MOST_RATE_TIMES = 4.0
"""Largest growth of a rate, in the shortest of runs."""
DECAY_EPOCHS = 10
"""Passes over the data in which weights that get no gradient fall to 1/e, at the full rate: text
that is seen often wants some weight decay, text that is seen once or twice next to none."""
MOST_DECAY_OF_A_STEP = 0.01
"""Largest share of a weight that a step takes away, for data of a few steps."""
ADAMW_RATE_TIMES_WIDTH = 1.024
"""AdamW's best rate falls with the width: 4e-3 at 256, 2.5e-4 at 4,096."""
MOST_ADAMW_RATE = 5e-3
"""Largest rate of AdamW, for very narrow drafters."""

WARMUP_SHARE = 0.04
LEAST_WARMUP_STEPS = 3
MOST_WARMUP_SHARE = 0.2
"""Largest share of warm-up, for runs so short that LEAST_WARMUP_STEPS would be too many."""

FEW_STEPS = 200
"""Number of steps below which a run gets a warning: tau rises most over the first hundreds."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of the training data; of several dumps, each counts by its weight."""

    hidden_size: int
    """Of the target."""
    num_samples: int
    num_tokens: int
    num_supervised: int
    has_final_states: bool = True
    """Of the dump: its logits are stored as final states."""

    def steps_of(self, batch_tokens: int, batch_size: int | None) -> int:
        """Steps of a pass over the data, about: samples stay whole."""
        if batch_size is not None:
            return max(1, math.ceil(self.num_samples / batch_size))
        return max(1, min(self.num_samples, math.ceil(self.num_tokens / batch_tokens)))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings with every default filled in, and the steps that follow from them on the data."""

    config: ResolvedTrainConfig
    facts: Facts
    num_steps: int
    is_counted: bool = False
    """Whether the samples are in steps, and the steps are counted; else they are about as many."""

    @property
    def num_warmup_steps(self) -> int:
        return round(self.num_steps * self.config.warmup_ratio)

    @property
    def num_epochs(self) -> float:
        """Passes over the data."""
        config = self.config
        if config.max_steps is None:
            return config.num_epochs
        return self.num_steps / self.facts.steps_of(config.batch_tokens, config.batch_size)

    @property
    def shortage(self) -> str | None:
        """A warning, where the data has few steps in it and nobody asked for so few; else None."""
        steps, facts = self.num_steps, self.facts
        if steps >= FEW_STEPS or self.config.max_steps is not None:
            return None
        times = math.ceil(FEW_STEPS / steps)
        return (
            f"{steps:,} steps are few: a drafter wants some hundreds to be accepted often. Train on"
            f" more text (about {times} times these {facts.num_tokens:,} tokens), or, for less,"
            f" give --num-epochs {math.ceil(self.num_epochs * times)}"
        )

    def short_run(self, num_steps: int) -> ShortRun:
        """How a run of so few steps of this size differs, by the same rules."""
        config = self.config
        # The rate was made with the steps that the tokens say.
        about = config.max_steps or config.num_epochs * self.facts.steps_of(
            config.batch_tokens, config.batch_size
        )
        times = _rate_times(config, about * num_steps / self.num_steps)
        times = float(f"{times / _rate_times(config, about):.3g}")
        settings: dict[str, Any] = {}
        if "warmup_ratio" not in config.model_fields_set:
            settings["warmup_ratio"] = _warmup_ratio(num_steps)
        if not config.model_fields_set & {"weight_decay", "muon_weight_decay"}:
            settings["muon_weight_decay"] = float(f"{config.muon_weight_decay / times:.3g}")
        return ShortRun(rate_times=times, settings=settings)

    @property
    def record(self) -> RunRecipe:
        config, facts = self.config, self.facts
        return RunRecipe(
            num_samples=facts.num_samples,
            num_tokens=facts.num_tokens,
            num_supervised=facts.num_supervised,
            num_steps=self.num_steps,
            num_warmup_steps=self.num_warmup_steps,
            num_epochs=round(self.num_epochs, 3),
            batch_tokens=config.batch_tokens if config.batch_size is None else None,
            batch_size=config.batch_size,
            optimizer=config.optimizer,
            learning_rate=config.learning_rate,
            hidden_size=facts.hidden_size,
        )

    def in_words(self) -> str:
        """What a person sees before the first step."""
        config, facts = self.config, self.facts
        about = "" if self.is_counted or config.max_steps is not None else "about "
        size = f"{config.batch_tokens:,} tokens"
        if config.batch_size is not None:
            size = f"{config.batch_size:,} samples"
        return (
            f"{facts.num_supervised:,} supervised of {facts.num_tokens:,} tokens in"
            f" {facts.num_samples:,} samples; {about}{self.num_steps:,} steps of {size}"
            f" ({self.num_epochs:.3g} epochs), {config.optimizer} at {config.learning_rate:.3g},"
            f" {config.schedule}, {self.num_warmup_steps:,} steps of warm-up"
        )


def resolve(config: TrainConfig, facts: Facts) -> Recipe:
    """The recipe of a run: what the configuration sets stands, and the rest follows."""
    budget = BUDGETS[config.preset]
    batch_tokens = config.batch_tokens or _step_size(config, facts, budget)
    per_epoch = facts.steps_of(batch_tokens, config.batch_size)
    max_steps, num_epochs = config.max_steps, config.num_epochs
    if num_epochs is None and max_steps is None:
        wanted = math.ceil(ENOUGH * budget.steps / per_epoch)
        num_epochs = min(max(wanted, budget.least_epochs), budget.most_epochs)
        if budget.most_steps is not None and num_epochs * per_epoch > budget.most_steps:
            max_steps = budget.most_steps
    if max_steps is not None:
        num_epochs = config.num_epochs or math.ceil(max_steps / per_epoch)
    assert num_epochs is not None
    num_steps = max_steps or num_epochs * per_epoch
    rate = _rate(config, facts, batch_tokens, num_steps)
    warmup = config.warmup_ratio
    settings: dict[str, Any] = {
        "state_loss": _state_loss(config, facts),
        "learning_rate": config.learning_rate or rate,
        "weight_decay": config.weight_decay or 0.0,
        "muon_weight_decay": _decay(config, rate, per_epoch),
        "warmup_ratio": _warmup_ratio(num_steps) if warmup is None else warmup,
        "num_epochs": num_epochs,
        "max_steps": max_steps,
        "batch_tokens": batch_tokens,
        "eval_tokens": config.eval_tokens or budget.eval_tokens,
    }
    if config.batch_tokens is None and batch_tokens > PASS_TOKENS:
        settings["pack_tokens"] = config.pack_tokens or PASS_TOKENS
    return Recipe(_resolved(config, settings), facts, num_steps)


def _resolved(config: TrainConfig, settings: dict[str, Any]) -> ResolvedTrainConfig:
    """What a person set counts as set, and nothing else does."""
    values = {name: getattr(config, name) for name in TrainConfig.model_fields} | settings
    return ResolvedTrainConfig.model_construct(_fields_set=set(config.model_fields_set), **values)


def _state_loss(config: TrainConfig, facts: Facts) -> float:
    if config.state_loss is not None:
        return config.state_loss
    is_as_wide = config.drafter.hidden_size_or(facts.hidden_size) == facts.hidden_size
    begins_with_the_targets_head = config.init_from is None
    if facts.has_final_states and is_as_wide and begins_with_the_targets_head:
        return config.drafter.state_loss or 0.0
    return 0.0


def _step_size(config: TrainConfig, facts: Facts, budget: Budget) -> int:
    """The largest power of two whose steps are as many as they should be."""
    if config.batch_size is not None:
        return PASS_TOKENS
    steps = max(config.max_steps or 0, budget.steps)
    seen = (config.num_epochs or budget.most_epochs) * facts.num_tokens
    size = _power_of_two(seen // steps, SMALLEST_STEP, budget.largest_step)
    if config.max_steps is None and budget.most_steps is None and size == budget.largest_step:
        seen = (config.num_epochs or budget.least_epochs) * facts.num_tokens
        size = _power_of_two(2 * seen // MANY_STEPS, size, LARGEST_STEP)
    return size


def _power_of_two(number: int, least: int, most: int) -> int:
    """The largest one that is no larger than `number`; `least` and `most` are some."""
    return min(max(1 << max(0, number.bit_length() - 1), least), most)


def _rate_times(config: TrainConfig, num_steps: float) -> float:
    """How much higher the rate of a run of so few steps is than that of a long one."""
    if config.optimizer != "muon" or config.init_from or config.drafter.begins_trained:
        return 1.0
    return min(max(1.0, math.sqrt(SHORT_RUN / num_steps)), MOST_RATE_TIMES)


def _rate(config: TrainConfig, facts: Facts, batch_tokens: int, num_steps: int) -> float:
    width = config.drafter.hidden_size_or(facts.hidden_size)
    if config.optimizer == "muon":
        tokens: float = batch_tokens
        if config.batch_size is not None:
            tokens = config.batch_size * facts.num_tokens / facts.num_samples
        rate = min(MUON_RATE * math.sqrt(min(tokens, MOST_MUON_TOKENS) / width), MOST_MUON_RATE)
    else:
        rate = min(ADAMW_RATE_TIMES_WIDTH / width, MOST_ADAMW_RATE)
    return float(f"{rate * _rate_times(config, num_steps):.3g}")


def _decay(config: TrainConfig, rate: float, steps_per_epoch: int) -> float:
    """Of Muon's matrices, at the recipe's `rate`; its time scale is passes over the data, however
    they are cut into steps (arXiv 2405.13698). A lower rate lets weights fall slower, too. Weights
    that were trained before are no larger than they should be."""
    if config.muon_weight_decay is not None:
        return config.muon_weight_decay
    if config.weight_decay is not None:
        return config.weight_decay
    if config.init_from or config.drafter.begins_trained:
        return 0.0
    of_a_step = min(1 / (steps_per_epoch * DECAY_EPOCHS), MOST_DECAY_OF_A_STEP)
    return float(f"{of_a_step / rate:.3g}")


def _warmup_ratio(num_steps: int) -> float:
    return min(max(WARMUP_SHARE, LEAST_WARMUP_STEPS / num_steps), MOST_WARMUP_SHARE)
