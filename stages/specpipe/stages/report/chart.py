"""Line charts as SVG text, inline in the page; no library, no script.

Colours, dashes and marks come in pairs with the number of a series, so that a chart reads without
colour. What stands in a chart is escaped by markupsafe.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from specpipe.stages.report.scale import Kind, Scale, scale_of, tick_label

Point = tuple[float, float]
Interval = tuple[float, float, float]
"""x, low, high"""

WIDTH, HEIGHT = 420, 264
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 12, 42
MOST_MARKED = 40
"""Points of a line that are marked one by one; a longer one is a line alone."""

DASHES = ("", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3", "9 3 2 3")
MARKS = (
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",  # circle
    "M-3.3 -3.3h6.6v6.6h-6.6z",  # square
    "M0 -4.4L4.2 3.4H-4.2z",  # triangle
    "M0 -4.8L4.8 0L0 4.8L-4.8 0z",  # diamond
    "M0 4.4L4.2 -3.4H-4.2z",  # triangle, upside down
    "M-1.4 -4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8z",  # plus
    "M-4.4 0L3.4 -4.2V4.2z",  # triangle to the left
    "M-4.6 -2h9.2v4h-9.2z",  # bar
)
NUM_STYLES = len(MARKS)


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart, or marks alone; points that are not finite are left out."""

    name: str
    points: Sequence[Point]
    style: int
    """Which colour, dash and mark."""
    band: Sequence[Interval] = ()
    """Confidence: an area behind a line, bars through marks."""
    is_joined: bool = True
    is_faint: bool = False
    """A line in the background, without marks."""


@dataclass(frozen=True, slots=True)
class Axis:
    label: str
    """With its unit."""
    kind: Kind = "linear"
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its series and its caption."""

    title: str
    svg: Markup
    legend: tuple[tuple[Markup, str], ...]
    """(sign, name) of each series"""
    caption: str


def line_chart(
    title: str,
    x: Axis,
    y: Axis,
    series: Iterable[Series],
    caption: str = "",
    mark_x: tuple[float, str] | None = None,
) -> Figure | None:
    """The chart of these series, with a line across at `mark_x`; None where there is no point."""
    drawn = [line for one in series if (line := _finite(one)).points]
    if not drawn:
        return None
    xs = [px for line in drawn for px, _ in line.points] + ([mark_x[0]] if mark_x else [])
    ys = [py for line in drawn for _, py in line.points]
    ys += [end for line in drawn for _, *ends in line.band for end in ends]
    across = scale_of(xs, x.kind, LEFT, WIDTH - RIGHT, x.limits)
    upward = scale_of(ys, y.kind, HEIGHT - BOTTOM, TOP, y.limits)
    parts = [_frame(across, upward, x.label, y.label)]
    if mark_x is not None:
        parts.append(_mark_across(across.at(mark_x[0]), mark_x[1]))
    parts += [_band(line, across, upward) for line in drawn if line.band]
    parts += [_line(line, across, upward) for line in drawn]
    svg = Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(WIDTH, HEIGHT, f"{title}: {y.label} by {x.label}", title, Markup("").join(parts))
    legend = tuple((_sign(line), line.name) for line in drawn)
    return Figure(title, svg, legend, caption)


def _finite(line: Series) -> Series:
    points = [point for point in line.points if all(map(math.isfinite, point))]
    band = [interval for interval in line.band if all(map(math.isfinite, interval))]
    return Series(line.name, points, line.style, band, line.is_joined, line.is_faint)


def _frame(across: Scale, upward: Scale, x_label: str, y_label: str) -> Markup:
    """Grid, axes, ticks and what the axes are."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in upward.ticks:
        y = upward.at(tick)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(LEFT, right, y, y, LEFT - 6, y + 4, tick_label(tick))
        )
    for tick in across.ticks:
        x = across.at(tick)
        parts.append(
            Markup(
                '<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>'
                '<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
            ).format(x, x, bottom, bottom + 4, x, bottom + 16, tick_label(tick))
        )
    middle = (TOP + bottom) / 2
    parts.append(
        Markup(
            '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>'
            '<text class="label" transform="translate(12 {}) rotate(-90)" text-anchor="middle">'
            "{}</text>"
        ).format(
            LEFT, right, bottom, bottom, (LEFT + right) / 2, HEIGHT - 6, x_label, middle, y_label
        )
    )
    return Markup("").join(parts)


def _mark_across(x: float, label: str) -> Markup:
    anchor, shift = ("end", -5) if x > WIDTH / 2 else ("start", 5)
    return Markup(
        '<line class="mark" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>'
        '<text class="note" x="{:.1f}" y="{}" text-anchor="{}">{}</text>'
    ).format(x, x, TOP, HEIGHT - BOTTOM, x + shift, HEIGHT - BOTTOM - 8, anchor, label)


def _band(line: Series, across: Scale, upward: Scale) -> Markup:
    if line.is_joined:
        there = [f"{across.at(x):.1f},{upward.at(high):.1f}" for x, _, high in line.band]
        back = [f"{across.at(x):.1f},{upward.at(low):.1f}" for x, low, _ in reversed(line.band)]
        return Markup('<polygon class="band s{}" points="{}"/>').format(
            line.style, " ".join(there + back)
        )
    bars = [
        Markup('<path class="bar" d="M{0:.1f} {1:.1f}V{2:.1f}m-4 0h8M{3:.1f} {1:.1f}h8"/>').format(
            across.at(x), upward.at(low), upward.at(high), across.at(x) - 4
        )
        for x, low, high in line.band
    ]
    return Markup('<g class="s{}">{}</g>').format(line.style, Markup("").join(bars))


def _line(line: Series, across: Scale, upward: Scale) -> Markup:
    places = [(across.at(x), upward.at(y)) for x, y in line.points]
    parts = []
    if line.is_joined and len(places) > 1:
        parts.append(
            Markup('<polyline points="{}" stroke-dasharray="{}"/>').format(
                " ".join(f"{x:.1f},{y:.1f}" for x, y in places),
                "" if line.is_faint else DASHES[line.style],
            )
        )
    if not line.is_faint and (not line.is_joined or len(places) <= MOST_MARKED):
        parts += [
            Markup(
                '<path d="{}" transform="translate({:.1f} {:.1f})"><title>{}</title></path>'
            ).format(MARKS[line.style], x, y, f"{line.name}: {tick_label(px)}, {py:.4g}")
            for (x, y), (px, py) in zip(places, line.points, strict=True)
        ]
    kind = "faint" if line.is_faint else "line" if line.is_joined else "marks"
    return Markup('<g class="{} s{}">{}</g>').format(kind, line.style, Markup("").join(parts))


def _sign(line: Series) -> Markup:
    """A piece of the line, for the legend."""
    stroke = Markup('<line x1="1" x2="29" y1="7" y2="7" stroke-dasharray="{}"/>').format(
        "" if line.is_faint else DASHES[line.style]
    )
    mark = Markup('<path d="{}" transform="translate(15 7)"/>').format(MARKS[line.style])
    inside = (stroke if line.is_joined else Markup("")) + (Markup("") if line.is_faint else mark)
    kind = "faint" if line.is_faint else "line" if line.is_joined else "marks"
    return Markup(
        '<svg class="sign" viewBox="0 0 30 14" aria-hidden="true"><g class="{} s{}">{}</g></svg>'
    ).format(kind, line.style, inside)
