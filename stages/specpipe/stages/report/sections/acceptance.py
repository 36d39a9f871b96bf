"""Sections: tokens per round, and where drafts are accepted.

Legend: K heads, C kinds of token.
"""

import math
from collections.abc import Mapping, Sequence

from specpipe.schemas.records.metrics import (
    REPLAY_TITLES,
    EvalMetrics,
    ReplayCurve,
    replay_titles,
)
from specpipe.schemas.records.served import RoundsComparison, ServeFindings
from specpipe.stages.report.blocks import Block, Cell, Figures, Missing, Section, Table
from specpipe.stages.report.chart import Axis, Figure, Series, line_chart
from specpipe.stages.report.sources import Sources
from specpipe.stages.report.token_kinds import KindSums
from specpipe.stages.report.token_text import KINDS

LEAST_REACHED = 5.0
"""Expected drafts below which a rate says nothing."""


def tau_section(sources: Sources) -> Section:
    """tau over draft tokens, with the engine's own points."""
    curves = replay_curves(sources)
    lead = (
        "A round is one pass of the target: it yields the accepted drafts and one token of its own."
        " More draft tokens cannot lower tau, but each costs a step of the drafter."
    )
    if not curves:
        return Section("tau", "Tokens per round", lead, [Missing(sources.missing["evaluation"])])
    served = None if sources.validation is None else sources.validation.serve
    blocks: list[Block] = []
    figure = _tau_figure(curves, served)
    if figure is not None:
        blocks.append(Figures([figure]))
    blocks.append(_tau_table(curves))
    if served is None:
        blocks.append(Missing("No engine was measured: export with --validation serve for that."))
    return Section("tau", "Tokens per round", lead, blocks)


def replay_curves(sources: Sources) -> dict[str, ReplayCurve]:
    """Of the exported files where they were replayed, else of the run's own evaluation."""
    validation, titles = sources.validation, replay_titles(samples_drafts=sources.samples_drafts)
    if validation is not None and validation.replay is not None and validation.replay.artifact:
        curves = validation.replay.artifact
        return {name: curves[name] for name in titles if name in curves}
    if sources.metrics is None:
        return {}
    return {name: getattr(sources.metrics, name) for name in titles}


def _tau_figure(curves: Mapping[str, ReplayCurve], served: ServeFindings | None) -> Figure | None:
    series = []
    for style, (name, curve) in enumerate(curves.items()):
        tokens = range(1, len(curve.tau) + 1)
        band = list(zip(map(float, tokens), curve.tau_low, curve.tau_high, strict=True))
        points = list(zip(map(float, tokens), curve.tau, strict=True))
        series.append(Series(_curve_name(name, curve), points, style, band))
    for style, name in ((5, "temperature_1"), (6, "greedy")):
        found: list[tuple[int, RoundsComparison]] = [
            (run.num_draft_tokens, comparison)
            for run in (served.runs if served else ())
            if (comparison := getattr(run, name)) is not None
        ]
        bars = [
            (
                float(k),
                c.tau_measured * (1 - c.relative_error_95),
                c.tau_measured * (1 + c.relative_error_95),
            )
            for k, c in found
        ]
        series.append(
            Series(
                f"vLLM, {name.replace('_', ' ')}",
                [(float(k), c.tau_measured) for k, c in found],
                style,
                bars,
                is_joined=False,
            )
        )
    caption = "Bands: 95 % intervals over the held-out samples that were replayed."
    if served is not None:
        caption += f" Marks: measured in vLLM {served.vllm_version}, on texts that it wrote."
    x, y = Axis("draft tokens per round", "whole"), Axis("tau (tokens per round)")
    return line_chart("Tokens per round", x, y, series, caption)


def _curve_name(name: str, curve: ReplayCurve) -> str:
    return REPLAY_TITLES[name] + ("" if curve.exact else " (estimate)")


def _tau_table(curves: Mapping[str, ReplayCurve]) -> Table:
    most = max(len(curve.tau) for curve in curves.values())
    rows = [
        (
            _curve_name(name, curve),
            *(
                f"{tau:.3f} ({low:.3f} to {high:.3f})"
                for tau, low, high in zip(curve.tau, curve.tau_low, curve.tau_high, strict=True)
            ),
        )
        for name, curve in curves.items()
    ]
    header = ["draft tokens", *map(str, range(1, most + 1))]
    caption = ""
    if not all(curve.exact for curve in curves.values()):
        caption = "An estimate: the text was not written by the target in this way."
    return Table("tau with its 95 % interval, replayed", header, rows, caption)


def position_section(sources: Sources, by_kind: KindSums | None, because: str) -> Section:
    """Acceptance by head, and by kind of token."""
    blocks: list[Block] = []
    if sources.metrics is None:
        blocks.append(Missing(sources.missing["evaluation"]))
    elif (figure := _by_head(sources.metrics)) is not None:
        blocks.append(Figures([figure]))
    blocks.append(Missing(because) if by_kind is None else _kind_table(by_kind, because))
    lead = "Head k drafts the k-th token of a round, and counts where the drafts before it hold."
    return Section("acceptance", "Where drafts are accepted", lead, blocks)


def _by_head(metrics: EvalMetrics) -> Figure | None:
    series = [
        Series(
            name,
            [(float(k), rate) for k, rate in enumerate(rates, start=1)],
            style,
        )
        for style, (name, rates) in enumerate(
            (
                ("temperature 1", metrics.temperature_1.acceptance_rate),
                ("greedy", metrics.greedy.acceptance_rate),
                ("without condition (alpha)", metrics.alpha),
            )
        )
    ]
    caption = (
        f"Held out, {metrics.num_samples:,} samples. alpha counts every position, whatever became"
        f" of the drafts before. No rate can pass {metrics.attainable_mass:.3f}, the target's"
        " probability on the draft vocabulary."
    )
    x, y = Axis("head (position in the draft)", "whole"), Axis("acceptance rate", limits=(0, 1))
    return line_chart("Acceptance by position", x, y, series, caption)


def _kind_table(sums: KindSums, how: str) -> Table:
    """Kinds that occur, the most frequent first."""
    rates_CK, shares_C = sums.rates(), sums.shares()
    rows: list[Sequence[str | Cell]] = [
        (
            KINDS[c],
            f"{share:.1%}",
            *(
                _rate(float(rate), float(reached))
                for rate, reached in zip(rates_CK[c], sums.reached_CK[c], strict=True)
            ),
        )
        for share, c in sorted(((float(s), c) for c, s in enumerate(shares_C)), reverse=True)
        if share > 0
    ]
    header = ["kind of token", "share", *(f"head {k + 1}" for k in range(rates_CK.shape[1]))]
    return Table("Acceptance by kind of token", header, rows, how)


def _rate(rate: float, reached: float) -> Cell:
    if math.isnan(rate) or reached < LEAST_REACHED:
        return Cell("-")
    return Cell(f"{rate:.2f}", min(1.0, rate))


def vocabulary_section(
    masses: Sequence[tuple[str, Mapping[int, float]]], draft_vocab_size: int | None, because: str
) -> Section:
    """`masses`: attainable mass by size of the draft vocabulary, of each dump, by its name."""
    series = [
        Series(name, [(float(size), mass) for size, mass in by_size.items()], style)
        for style, (name, by_size) in enumerate(masses)
    ]
    lead = (
        "The drafter proposes only tokens of its draft vocabulary. What probability the target"
        " gives to the D tokens that it likes most is the largest acceptance that D allows."
    )
    x = Axis("draft vocabulary D (tokens)", "log2")
    mark = (
        None if draft_vocab_size is None else (float(draft_vocab_size), f"D = {draft_vocab_size:,}")
    )
    figure = line_chart("Attainable mass", x, Axis("attainable mass (share)"), series, mark_x=mark)
    blocks: list[Block] = [Missing(because)] if figure is None else [Figures([figure])]
    return Section("vocabulary", "Draft vocabulary", lead, blocks)
