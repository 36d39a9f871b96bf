"""Which trainings are compared: targets, capacities, losses and choices, each with paired seeds."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from scripts.material import Material

SEEDS = (0, 1, 2)
NUM_HEADS = 3


@dataclass(frozen=True)
class Training:
    """One run of `specpipe train`."""

    material: str
    capacity: str
    choice: str
    seed: int
    settings: dict[str, str | int | float] = field(hash=False, compare=False)

    @property
    def name(self) -> str:
        return f"{self.material}-{self.capacity}-{self.choice}-{self.seed}"


CAPACITIES: dict[str, dict[str, str | int | float]] = {
    "small": {"intermediate-size": 64},
    "full": {},
}
"""The width of the drafter's MLP: 64, or the target's."""

LOSSES = ("kl", "lk_alpha", "lk_hybrid")

# The paper's lambda, of the step's own batch, is what the default's is measured against.
_HYBRID: dict[str, str | int | float] = {"loss": "lk_hybrid", "lambda-source": "exact"}

CHOICES: dict[str, dict[str, str | int | float]] = {
    "kl": {"loss": "kl"},
    "lk_alpha": {"loss": "lk_alpha"},
    "lk_hybrid": _HYBRID,
    "previous": _HYBRID | {"lambda-source": "previous_step"},
    "survival": _HYBRID | {"head-weights": "survival"},
    "mass-256": _HYBRID | {"draft-vocab-by": "mass", "draft-vocab-size": 256},
    "count-256": _HYBRID | {"draft-vocab-by": "count", "draft-vocab-size": 256},
}
"""Beside the losses: what else is compared, at full capacity with lk_hybrid."""

COMMON: dict[str, str | int | float] = {
    "config": "scripts/papers.yaml",
    "num-heads": NUM_HEADS,
    "draft-vocab-size": 1024,
    "learning-rate": 2e-3,
    "batch-tokens": 2048,
}


def trainings(materials: list[Material], max_steps: int) -> Iterator[Training]:
    """All runs; those that matter most first, a whole set of losses for each seed."""
    common = COMMON | {"max-steps": max_steps, "eval-every": max_steps}
    for choices in (LOSSES, tuple(name for name in CHOICES if name not in LOSSES)):
        for seed in SEEDS:
            for material in materials:
                for capacity, width in CAPACITIES.items():
                    if choices is not LOSSES and capacity != "full":
                        continue
                    for choice in choices:
                        settings = common | width | CHOICES[choice] | {"seed": seed}
                        yield Training(material.name, capacity, choice, seed, settings)
