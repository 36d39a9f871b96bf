"""The learning rate as a function of the step alone."""

import math


def learning_rate(step: int, total_steps: int, peak: float, warmup_ratio: float) -> float:
    """Rate of optimiser step `step` (0-based): a linear rise, then a cosine down to zero."""
    warmup = round(total_steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
