"""The learning rate as a function of the step alone."""

import math

from specpipe.schemas.settings.train import ResolvedTrainConfig


def rate_factor(step: int, total_steps: int, config: ResolvedTrainConfig) -> float:
    """Share of the peak learning rate at optimiser step `step` (0-based), in (0, 1].

    A linear rise over the first `warmup_ratio` of the steps, then what `schedule` names: the first
    step after the rise has the peak, and the last step is the one before zero.
    """
    warmup = round(total_steps * config.warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    after = total_steps - warmup
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / after))
    if config.schedule == "linear":
        return 1 - (step - warmup) / after
    if config.schedule == "wsd":
        decay = min(after, max(1, round(total_steps * config.wsd_decay)))
        # 1 - sqrt: the decay that arXiv 2405.18392 found best.
        return 1 - math.sqrt(max(0, step - (total_steps - decay)) / decay)
    return 1.0
