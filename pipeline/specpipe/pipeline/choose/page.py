"""choose.html: what was compared and what follows, with pictures."""

from collections.abc import Sequence
from pathlib import Path

from specpipe.pipeline.choose.words import cells, header, notes
from specpipe.schemas.records.choose import ChooseResult, Compared
from specpipe.schemas.records.metrics import REPLAY_TITLES
from specpipe.stages.report.blocks import Block, Figures, Missing, Notes, Page, Section, Table, Tile
from specpipe.stages.report.chart import NUM_STYLES, Axis, Figure, Series, line_chart
from specpipe.stages.report.page import render

_DRAFTS = Axis("draft tokens")


def choose_page(result: ChooseResult, out: Path) -> bytes:
    """The page as HTML, which stands alone."""
    sections = [_found(result), _tau(result), _speed(result)]
    return render(Page("Which drafter", str(out), _tiles(result), sections, "specpipe choose"))


def _tiles(result: ChooseResult) -> Sequence[Tile]:
    steps = f"of {result.full_steps:,} of a whole run"
    tiles = [
        Tile("compared", f"{len(result.compared)}", f"left out: {len(result.left_out)}"),
        Tile("steps of each", f"{result.steps:,}", steps),
    ]
    first = result.compared[0]
    best = first.best(result.batch_sizes[0]) if result.batch_sizes else None
    if best is None:
        return [*tiles, Tile("recommended", "none", "speeds are not known")]
    note = f"batch size {result.batch_sizes[0]}, {best[0]} draft tokens"
    return [
        *tiles,
        Tile("recommended", first.title, note, "good" if best[1] > 1 else ""),
        Tile("speed-up", f"{best[1]:.2f}", "expected, over the target alone"),
    ]


def _found(result: ChooseResult) -> Section:
    lead = (
        "Each drafter was trained by the same number of steps on the same text. tau is replayed on"
        " prompts that none was trained on; costs are those of steps in the engine."
    )
    rows = [cells(one, result) for one in result.compared]
    caption = f"{result.num_samples:,} samples. A speed stands with its number of draft tokens."
    blocks: list[Block] = [Table("Compared", header(result), rows, caption)]
    blocks += [Notes(result.reasons)]
    if lines := notes(result):
        blocks.append(Notes(lines))
    return Section("found", "What was found", lead, blocks)


def _tau(result: ChooseResult) -> Section:
    series = [
        Series(
            one.title,
            [(float(n), tau) for n, tau in enumerate(one.tau, start=1)],
            at % NUM_STYLES,
            band=[
                (float(n), low, high)
                for n, (low, high) in enumerate(
                    zip(one.tau_low, one.tau_high, strict=True), start=1
                )
            ],
        )
        for at, one in enumerate(result.compared)
        if one.tau
    ]
    figure = line_chart("tau by draft tokens", _DRAFTS, Axis("tau (tokens per round)"), series)
    decodings = {REPLAY_TITLES[one.replay] for one in result.compared}
    lead = f"Tokens that a round yields, with 95 % intervals over samples; {', '.join(decodings)}."
    return Section("tau", "Tokens per round", lead, [_figures([figure])])


def _speed(result: ChooseResult) -> Section:
    lead = (
        "tau over what a round costs, in steps of the target without a drafter. 1 is the target's"
        f" own speed. {result.times_of.capitalize()}."
    )
    figures = [_speed_at(result.compared, size) for size in result.batch_sizes]
    if not figures:
        missing = Missing("No step times are known: run it where vLLM is, or give --step-times.")
        return Section("speed", "Expected speed-up", "", [missing])
    return Section("speed", "Expected speed-up", lead, [_figures(figures)])


def _speed_at(compared: Sequence[Compared], size: int) -> Figure | None:
    series = []
    for at, one in enumerate(compared):
        for found in one.speedups:
            if found.cost.batch_size == size:
                points = [(float(n), value) for n, value in enumerate(found.expected, start=1)]
                series.append(Series(one.title, points, at % NUM_STYLES))
    return line_chart(f"speed-up at batch size {size}", _DRAFTS, Axis("times the target"), series)


def _figures(figures: Sequence[Figure | None]) -> Figures:
    return Figures([figure for figure in figures if figure is not None])
