"""Trainings on shares of a run's data, in folders of their own below the run's.

A share is trained as the whole is: the same settings, and those that follow from the data follow
from the share's. So what they show is what the same command comes to with less data.
"""

from collections.abc import Sequence

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.records.checkpoint import TrainResult
from specpipe.schemas.records.learning_curve import (
    CURVE_FOLDER,
    LEARNING_CURVE_FILE,
    CurvePoint,
    LearningCurve,
)
from specpipe.schemas.settings.recipe import Facts, resolve
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.runs.folder import RunFolder, continued
from specpipe.stages.storage.store.local_disk import write_file
from specpipe.stages.train.learning_curve.prediction import predicted
from specpipe.stages.untrusted.files import read_file

SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the run's data; together they cost 7/8 of the run."""

_FOLLOWING = (
    "learning_rate",
    "weight_decay",
    "muon_weight_decay",
    "batch_tokens",
    "num_epochs",
    "max_steps",
    "warmup_ratio",
    "pack_tokens",
    "eval_tokens",
)
"""Settings that follow from the amount of data where nobody sets them."""


def share_config(config: TrainConfig, whole: TrainResult, share: float) -> TrainConfig:
    """The settings of a training on this share of what the complete run `whole` trained on.

    Raises ConfigError where the run is of a version that did not record how much that was.
    """
    folder = RunFolder(config.out)
    run = folder.path / CURVE_FOLDER / f"{share:g}"
    has_begun = bool(RunFolder(str(run)).begun())
    base = _left_open(config, continued(config, folder.begun()), whole, has_begun)
    changes = {
        "out": str(run),
        "data_fraction": base.data_fraction * share,
        "learning_curve": False,
        "log": (),
        "keep_checkpoints": 1,
        # The whole run has read it.
        "preverify": "metadata",
    }
    # As many passes, and as many evaluations, as of the whole.
    for name in ("max_steps", "eval_every"):
        if (number := getattr(base, name)) is not None:
            changes[name] = max(1, round(number * share))
    values = dict(base) | changes
    return TrainConfig.model_construct(**values)


def _left_open(
    config: TrainConfig, whole: TrainConfig, result: TrainResult, has_begun: bool
) -> TrainConfig:
    """The run's settings, without those that followed from its data.

    A run of an older version, or whose first command set what this one does not, has others than
    would follow now: all of its numbers stay. A share that `has_begun` goes on with its own.
    """
    recipe = result.recipe
    if recipe is None:
        raise ConfigError(
            f"{config.out} holds a run of an older version, which did not record how much it"
            " trained on: train it anew, in another --out, for its --learning-curve"
        )
    left_open = {name: None for name in _FOLLOWING if getattr(config, name) is None}
    opened = TrainConfig.model_construct(**(dict(whole) | left_open))
    if has_begun:
        return opened
    if recipe.hidden_size is None:
        return whole
    facts = Facts(recipe.hidden_size, recipe.num_samples, recipe.num_tokens, recipe.num_supervised)
    again = resolve(opened, facts).config
    same = all(getattr(again, name) == getattr(whole, name) for name in _FOLLOWING)
    return opened if same else whole


def learning_curve(
    config: TrainConfig, whole: TrainResult, shares: Sequence[tuple[float, TrainResult]]
) -> LearningCurve:
    """The curve of complete runs, by the share of the data; kept in the run's folder."""
    folder = RunFolder(config.out)
    is_greedy = whole.best.replay_greedy.exact
    fraction = folder.read_config().data_fraction
    points = [
        _point(fraction * share, result, is_greedy) for share, result in [*shares, (1.0, whole)]
    ]
    untrained = whole.untrained.replay(is_greedy=is_greedy)
    curve = predicted(points, untrained.tau[-1], len(untrained.tau), is_greedy=is_greedy)
    path = folder.path / LEARNING_CURVE_FILE
    if not path.exists() or read_file(path) != curve.to_json():
        write_file(path, curve.to_json())
    return curve


def _point(fraction: float, result: TrainResult, is_greedy: bool) -> CurvePoint:
    curve = result.best.replay(is_greedy=is_greedy)
    if result.recipe is None:
        raise IntegrityError(
            f"{result.out} does not say how much it trained on; remove it and run the same command"
            " again"
        )
    return CurvePoint(
        data_fraction=fraction,
        # A run that ends within its first pass has not seen all.
        num_tokens=min(result.recipe.num_tokens, result.num_tokens),
        num_steps=result.steps,
        tau=curve.tau[-1],
        tau_low=curve.tau_low[-1],
        tau_high=curve.tau_high[-1],
    )
