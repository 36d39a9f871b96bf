"""Section: loss and acceptance over training.

Legend: K heads.
"""

from collections.abc import Callable, Sequence
from typing import Any

from specpipe.schemas.records.metrics import EvalMetrics
from specpipe.stages.report.blocks import Block, Figures, Missing, Section
from specpipe.stages.report.chart import NUM_STYLES, Axis, Figure, Point, Series, line_chart
from specpipe.stages.report.sources import Sources

MOST_POINTS = 160
"""Of the loss of steps; where there are more, each is the mean of some neighbours."""

_STEP = Axis("optimiser step")
_LOSSES: dict[str, tuple[str, str]] = {
    "kl": ("kl", "KL(p || q)"),
    "ce": ("cross_entropy", "cross-entropy"),
}
_LK = ("lk", "-log alpha")


def training_section(sources: Sources) -> Section:
    """Loss of steps and evaluations; per head, loss and acceptance; tau."""
    evaluations = [
        (int(row["step"]), EvalMetrics.model_validate(row["eval"]))
        for row in sources.rows
        if "eval" in row
    ]
    steps = [
        (float(row["step"]), float(row["draft_loss"]))
        for row in sources.rows
        if "draft_loss" in row
    ]
    figures = [_loss(steps, evaluations, sources.settings.losses)]
    if evaluations:
        figures += [
            _loss_per_head(evaluations, list(sources.settings.losses)),
            _per_head(
                "Acceptance per head",
                evaluations,
                "acceptance rate",
                lambda metrics: metrics.temperature_1.acceptance_rate,
                f"At temperature 1{'' if sources.samples_drafts else ', with greedy drafts'}: the"
                " probability that head k's draft is accepted where those before it were.",
                (0.0, 1.0),
            ),
            _tau(evaluations, samples_drafts=sources.samples_drafts),
        ]
    blocks: list[Block] = [Figures([figure for figure in figures if figure is not None])]
    if not any(figures):
        blocks = [Missing("metrics.jsonl holds no step yet.")]
    elif not evaluations:
        blocks.append(Missing(sources.missing["evaluation"]))
    lead = "Evaluations are on held-out samples, which training never sees."
    return Section("training", "Training", lead, blocks)


def _loss(
    steps: Sequence[Point],
    evaluations: Sequence[tuple[int, EvalMetrics]],
    losses: dict[Any, float],
) -> Figure | None:
    points, each = thinned(steps)
    of_steps = "training, each step" if each == 1 else f"training, mean of {each} steps"
    series = [
        Series(of_steps, points, 5, is_faint=True),
        Series("held out", [(step, metrics.draft_loss) for step, metrics in evaluations], 0),
    ]
    name = " + ".join(
        loss if weight == 1 else f"{weight:g} {loss}" for loss, weight in losses.items()
    )
    caption = f"What is minimised ({name}), summed over the heads with their weights."
    return line_chart("Loss", _STEP, Axis("loss (nats)"), series, caption)


def _loss_per_head(
    evaluations: Sequence[tuple[int, EvalMetrics]], losses: list[str]
) -> Figure | None:
    name, words = _LOSSES.get(losses[0], _LK) if len(losses) == 1 else _LK
    return _per_head(
        f"{words} per head",
        evaluations,
        f"{words} (nats)",
        lambda metrics: getattr(metrics, name),
        "Held out; alpha is the probability that a draft is accepted at a position.",
    )


def _per_head(
    title: str,
    evaluations: Sequence[tuple[int, EvalMetrics]],
    label: str,
    value_of: Callable[[EvalMetrics], list[float]],
    caption: str,
    limits: tuple[float, float] | None = None,
) -> Figure | None:
    series = [
        Series(
            f"head {k + 1}",
            [(step, value_of(metrics)[k]) for step, metrics in evaluations],
            k % NUM_STYLES,
        )
        for k in range(len(value_of(evaluations[0][1])))
    ]
    return line_chart(title, _STEP, Axis(label, limits=limits), series, caption)


def _tau(evaluations: Sequence[tuple[int, EvalMetrics]], *, samples_drafts: bool) -> Figure | None:
    num_heads = len(evaluations[0][1].kl)
    at_1 = "temperature 1" if samples_drafts else "temperature 1, drafts greedy"
    series = []
    for style, (name, words) in enumerate(
        (("replay_temperature_1", at_1), ("replay_greedy", "greedy"))
    ):
        curves = [(step, getattr(metrics, name)) for step, metrics in evaluations]
        series.append(
            Series(
                words,
                [(step, curve.tau[-1]) for step, curve in curves],
                style,
                [(step, curve.tau_low[-1], curve.tau_high[-1]) for step, curve in curves],
            )
        )
    caption = "Replayed on held-out samples, with 95 % intervals over samples."
    title = f"Tokens per round, {num_heads} draft tokens"
    return line_chart(title, _STEP, Axis("tau (tokens per round)"), series, caption)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[list[Point], int]:
    """At most so many points, each the mean of as many neighbours, and of how many."""
    each = -(-len(points) // most) if points else 1
    groups = [points[at : at + each] for at in range(0, len(points), each)]
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
    return means, each
