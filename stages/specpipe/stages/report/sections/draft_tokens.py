"""Section: how many tokens to draft, by what a round gives and what it costs."""

from specpipe.schemas.speedup import Recommendation, Speedup, in_words
from specpipe.stages.report.blocks import Block, Figures, Missing, Section, Table
from specpipe.stages.report.chart import NUM_STYLES, Axis, Figure, Series, line_chart
from specpipe.stages.report.sources import Sources


def draft_tokens_section(sources: Sources) -> Section:
    """Expected speed-up by draft tokens and batch size, with the engine's own points."""
    lead = (
        "Each draft token costs a step of the drafter and a place in the target's pass, and that"
        " costs more the larger the batch is. The best number is where the tokens of a round,"
        " over its cost, are most."
    )
    validation = sources.validation
    recommended = None if validation is None else validation.recommendation
    blocks: list[Block]
    if recommended is None:
        why = sources.missing.get("artifact", "The export has not come to its end.")
        blocks = [Missing(why)]
    else:
        blocks = _blocks(recommended)
    return Section("draft-tokens", "How many tokens to draft", lead, blocks)


def _blocks(recommended: Recommendation) -> list[Block]:
    rows = [("draft tokens", str(recommended.draft_tokens)), ("because", recommended.because)]
    if recommended.schedule:
        rows.append(("by batch size", in_words(recommended.schedule)))
    number = Table("Recommended", [], rows, is_words=True)
    figure = _figure(recommended)
    if figure is None:
        why = "What a round costs is not known: export with --validation serve to time it."
        return [number, Missing(why)]
    return [Figures([figure]), _costs(recommended.speedups), number]


def _figure(recommended: Recommendation) -> Figure | None:
    series = []
    for number, speedup in enumerate(recommended.speedups):
        size = speedup.cost.batch_size
        expected = [(float(k), value) for k, value in enumerate(speedup.expected, start=1)]
        measured = [(float(k), value) for k, value in sorted(speedup.measured.items())]
        style, mark = 2 * number % NUM_STYLES, (2 * number + 1) % NUM_STYLES
        series.append(Series(f"batch size {size}, expected", expected, style))
        series.append(
            Series(f"batch size {size}, measured in vLLM", measured, mark, is_joined=False)
        )
    x, y = Axis("draft tokens per round", "whole"), Axis("speed-up (times the target alone)")
    number = recommended.draft_tokens
    return line_chart(
        "Speed-up by draft tokens",
        x,
        y,
        series,
        "Tokens per second, over those of the same engine without a drafter; below 1, drafting"
        " costs more than it gives. Expected: tau of the replay at temperature 1 over the fitted"
        " cost of a round.",
        mark_x=(float(number), f"recommended: {number}"),
    )


def _costs(speedups: list[Speedup]) -> Table:
    rows = [
        (
            str(one.cost.batch_size),
            f"{one.cost.overhead:.3f}",
            f"{one.cost.step_cost:.3f}",
            f"{one.cost.idle:.3f}",
            str(one.best) if one.pays else "none pays",
        )
        for one in speedups
    ]
    header = ["batch size", "a round", "and each draft token", "without drafts", "best number"]
    return Table(
        "What a round costs", header, rows, "In passes of the target that give one token each."
    )
