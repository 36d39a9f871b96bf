"""`specpipe train --learning-curve`: a run's shares, one after the other, and what is shown."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.pipeline.terminal.console import is_first_process, show_columns
from specpipe.schemas.errors import InputError
from specpipe.schemas.records.checkpoint import TrainResult
from specpipe.schemas.records.learning_curve import LearningCurve
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.process.stop import stops_early

if TYPE_CHECKING:
    from specpipe.stages.runs.tau_rows import TauAt, TauByTokens

MOST_SHOWN = 6
"""Evaluations that a terminal has room for."""

RunShare = Callable[[TrainConfig, str], TrainResult]
"""Trains one share, whose name a person sees."""


def train_shares(config: TrainConfig, whole: TrainResult, run: RunShare) -> LearningCurve | None:
    """Train on each share of what the complete run `whole` trained on, and fit.

    Stopped or killed, the same command goes on with the share that it was at. None in the processes
    of torchrun but the first, which train with it and write nothing.
    """
    from specpipe.stages.runs.folder import RunFolder
    from specpipe.stages.train.learning_curve.shares import (
        SHARES,
        learning_curve,
        share_config,
    )

    trained: list[tuple[float, TrainResult]] = []
    with stops_early():
        for share in SHARES:
            of_share = share_config(config, whole, share)
            try:
                result = run(of_share, f"1/{round(1 / share)} of the data")
            except InputError:
                # No prompt of so few falls into the share: there is a point less.
                continue
            if is_first_process():
                RunFolder(of_share.out).forget_weights()
            trained.append((share, result))
        return learning_curve(config, whole, trained) if is_first_process() else None


def curve_rows(curve: LearningCurve | None) -> list[tuple[str, str]]:
    """The end of `specpipe train`: what more data would bring."""
    if curve is None:
        return []
    check = curve.check_in_words()
    return [("more data", curve.in_words()), *([("checked", check)] if check else [])]


def show_curve(curve: LearningCurve | None) -> None:
    """tau by the amount of data."""
    if curve is None:
        return
    mode = "greedy" if curve.is_greedy else "temperature 1"
    show_columns(
        f"Learning curve ({mode}, {curve.num_draft_tokens} draft tokens)",
        ["share of the data", "tokens", "steps", "tau", "95 % interval"],
        [
            (
                f"{point.data_fraction:.4g}",
                f"{point.num_tokens:,}",
                f"{point.num_steps:,}",
                f"{point.tau:.3f}",
                f"{point.tau_low:.3f} to {point.tau_high:.3f}",
            )
            for point in curve.points
        ],
    )


def tau_of_run(result: TrainResult) -> "TauByTokens":
    """tau at each evaluation of a run, against the tokens trained on."""
    from specpipe.stages.runs.metric_rows import metric_rows
    from specpipe.stages.runs.tau_rows import tau_by_tokens

    curve = "replay_greedy" if result.best.replay_greedy.exact else "replay_temperature_1"
    return tau_by_tokens(metric_rows(Path(result.out).expanduser()), curve)


def show_tau_by_tokens(found: "TauByTokens") -> None:
    """Some of the evaluations, the first and the last among them."""
    some = _spread(found.evaluations)
    if some:
        header = ["tokens trained on", *(f"{one.num_tokens:,}" for one in some)]
        show_columns("Over training", header, [("tau", *(f"{one.tau:.3f}" for one in some))])


def _spread(evaluations: "Sequence[TauAt]") -> "Sequence[TauAt]":
    if len(evaluations) <= MOST_SHOWN:
        return evaluations
    last = len(evaluations) - 1
    return [evaluations[round(at * last / (MOST_SHOWN - 1))] for at in range(MOST_SHOWN)]
