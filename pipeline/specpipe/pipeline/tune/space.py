"""The search space: settings that depend on the data, around those of the recipe.

A setting that the user gives is not searched. Trials are points of a scrambled Sobol sequence,
which a seed decides and which covers few dimensions evenly with few points.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from specpipe.pipeline.trials.trial import step_size
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.tune import Settings
from specpipe.schemas.settings.train import ResolvedTrainConfig

RATE_RANGE = 4.0
"""The learning rate is tried from a quarter of the recipe's to four times it."""
STEP_SIZES = (1.0, 0.5, 2.0)
STATE_WEIGHTS = (1.0, 0.3, 3.0)
"""Times the recipe's weight of the loss of states."""
_HEAD_CHOICES: tuple[Settings, ...] = (
    {"head_decay": 0.8, "head_weights": "static"},
    {"head_decay": 0.6, "head_weights": "static"},
    {"head_decay": 1.0, "head_weights": "static"},
    {"head_decay": 0.8, "head_weights": "survival"},
)
OWN_SHARE = 0.5
"""Of the trials, how many keep the recipe's choice of norms, and so on: it is good, and a trial
that changes everything at once says little."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the search: settings at a place in [0, 1)."""

    names: tuple[str, ...]
    at: Callable[[float], Settings]


def search_axes(recipe: ResolvedTrainConfig, given: frozenset[str] | set[str]) -> list[Axis]:
    """What is left to search beside the settings that are given; raises ConfigError for nothing."""
    axes = []
    if not given & {"learning_rate", "muon_learning_rate"}:
        axes.append(_rate(recipe))
    step = step_size(recipe)
    if not given & {"batch_tokens", "batch_size"}:
        axes.append(_choices([_scaled(recipe, step, by) for by in STEP_SIZES]))
    if recipe.state_loss and "state_loss" not in given:
        weights = [float(f"{recipe.state_loss * by:.3g}") for by in STATE_WEIGHTS]
        axes.append(_choices([{"state_loss": weight} for weight in weights]))
    if norms := recipe.drafter.search_choices():
        axes.append(_choices(_around(recipe, given, norms)))
    if recipe.num_heads > 1 and recipe.head_weights != "dpace":
        axes.append(_choices(_around(recipe, given, _HEAD_CHOICES)))
    axes = [axis for axis in axes if axis.names]
    if not axes:
        raise ConfigError(
            "learning rate, step's size, loss of states, norms and weights of the heads are all"
            " given, so that nothing is left to search; leave one of them out, or run specpipe"
            " train"
        )
    return axes


def trial_settings(axes: Sequence[Axis], num_trials: int, seed: int) -> list[Settings]:
    """Settings of so many trials, or fewer where there are no more different ones.

    The first is the recipe's own.
    """
    from torch.quasirandom import SobolEngine

    sobol = SobolEngine(len(axes), scramble=True, seed=seed)
    trials = [_settings(axes, [0.5 if axis.names == ("learning_rate",) else 0.0 for axis in axes])]
    for _ in range(16 * num_trials):
        if len(trials) == num_trials:
            break
        found = _settings(axes, sobol.draw(1)[0].tolist())
        if found not in trials:
            trials.append(found)
    return trials


def middle(axes: Sequence[Axis], best: Sequence[Settings]) -> Settings:
    """Settings between those of some trials, best first: the geometric mean of their learning
    rates; of the other axes what most of them have, or the best of those that are as frequent."""
    found: Settings = {}
    for axis in axes:
        if axis.names == ("learning_rate",):
            rate = math.prod(trial["learning_rate"] for trial in best) ** (1 / len(best))
            found["learning_rate"] = float(f"{rate:.3g}")
            continue
        choices: list[Settings] = [{name: trial[name] for name in axis.names} for trial in best]
        most_frequent: Settings = max(choices, key=choices.count)
        found |= most_frequent
    return found


def _settings(axes: Sequence[Axis], places: Sequence[float]) -> Settings:
    return {
        name: value
        for axis, place in zip(axes, places, strict=True)
        for name, value in axis.at(place).items()
    }


def _rate(recipe: ResolvedTrainConfig) -> Axis:
    def at(place: float) -> Settings:
        if place == 0.5:
            return {"learning_rate": recipe.learning_rate}
        rate = recipe.learning_rate * RATE_RANGE ** (2 * place - 1)
        return {"learning_rate": float(f"{rate:.3g}")}

    return Axis(("learning_rate",), at)


def _scaled(recipe: ResolvedTrainConfig, name: str, by: float) -> Settings:
    return {name: max(1, round(getattr(recipe, name) * by))}


def _around(
    recipe: ResolvedTrainConfig, given: frozenset[str] | set[str], choices: Sequence[Settings]
) -> list[Settings]:
    """The recipe's own choice and the others, in the settings that are not given."""
    free = [name for name in choices[0] if name not in given]
    own = recipe.flat()
    found = [{name: own[name] for name in free}]
    for choice in choices:
        if any(choice[name] != own[name] for name in choice if name not in free):
            continue
        other = {name: choice[name] for name in free}
        if other not in found:
            found.append(other)
    return found


def _choices(choices: Sequence[Settings]) -> Axis:
    """The first has `OWN_SHARE` of the places, the others share the rest."""
    if len(choices) == 1:
        return Axis((), lambda _: {})
    others = choices[1:]

    def at(place: float) -> dict[str, Any]:
        if place < OWN_SHARE:
            return choices[0]
        return others[int((place - OWN_SHARE) / (1 - OWN_SHARE) * len(others))]

    return Axis(tuple(choices[0]), at)
