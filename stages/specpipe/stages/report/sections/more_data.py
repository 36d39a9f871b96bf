"""Section: tau against the data, and what more of it is expected to bring."""

from specpipe.schemas.records.learning_curve import Expected, LearningCurve
from specpipe.stages.report.blocks import Block, Figures, Missing, Notes, Section, Table
from specpipe.stages.report.chart import Axis, Figure, Series, line_chart
from specpipe.stages.report.sources import Sources
from specpipe.stages.runs.tau_rows import TauByTokens, tau_by_tokens

_TAU = Axis("tau (tokens per round)")


def more_data_section(sources: Sources) -> Section:
    """tau over this run's tokens; with --learning-curve, tau of shares of the data and beyond."""
    curve = sources.learning_curve
    figures = [_over_training(sources)]
    blocks: list[Block] = []
    if curve is None:
        blocks.append(
            Missing(
                "What more data would bring is not known: the run was made without"
                " --learning-curve, which trains on an eighth, a quarter and a half of the data"
                " too. The same command with it goes on from here."
            )
        )
    else:
        figures.append(_over_data(curve))
        check = curve.check_in_words()
        blocks += [Notes([curve.in_words(), *([check] if check else [])]), _table(curve)]
    drawn = [figure for figure in figures if figure is not None]
    lead = "How tau came with the tokens trained on, and how much data it takes."
    return Section("data", "More data", lead, [Figures(drawn), *blocks] if drawn else blocks)


def _over_training(sources: Sources) -> Figure | None:
    is_greedy = sources.metrics is not None and sources.metrics.replay_greedy.exact
    curve = "replay_greedy" if is_greedy else "replay_temperature_1"
    found: TauByTokens = tau_by_tokens(sources.rows, curve)
    name = "greedy" if is_greedy else "temperature 1"
    evaluations = found.evaluations
    # Ticks of many digits have no room.
    most = max((one.num_tokens for one in evaluations), default=0)
    unit, words = (1e6, "millions") if most >= 5e6 else (1e3, "thousands")
    series = Series(
        name,
        [(one.num_tokens / unit, one.tau) for one in evaluations],
        int(is_greedy),
        [(one.num_tokens / unit, one.low, one.high) for one in evaluations],
    )
    caption = (
        "Of this run, held out, with 95 % intervals. It is a picture of the training: its rate"
        " falls on the way, and passes after the first bring no new text."
    )
    passed = found.pass_tokens
    mark = None if passed is None else (passed / unit, "one pass over the data")
    title = "Tokens per round over the tokens trained on"
    axis = Axis(f"{words} of tokens trained on")
    return line_chart(title, axis, _TAU, [series], caption, mark)


def _over_data(curve: LearningCurve) -> Figure | None:
    whole = curve.points[-1].num_tokens
    points = [(point.num_tokens / whole, point) for point in curve.points]
    series = [
        Series("law", *_drawn(curve.law, whole, 2), is_faint=True),
        Series(
            "trained on a share",
            [(share, point.tau) for share, point in points],
            0,
            [(share, point.tau_low, point.tau_high) for share, point in points],
            is_joined=False,
        ),
        Series("expected", *_drawn(curve.expected, whole, 1), is_joined=False),
    ]
    mode = "greedy" if curve.is_greedy else "at temperature 1"
    caption = (
        f"Each mark is a training of its own on nested shares of the data, {mode} with"
        f" {curve.num_draft_tokens} draft tokens. The bars of what is expected hold 95 %: the fit,"
        " the evaluation's error and the spread between runs are in them."
    )
    axis = Axis(f"data (1: this run's {whole:,} tokens)", "log2")
    return line_chart("Tokens per round by the amount of data", axis, _TAU, series, caption)


Drawn = tuple[list[tuple[float, float]], int, list[tuple[float, float, float]]]


def _drawn(expected: list[Expected], whole: int, style: int) -> Drawn:
    """Points, style and band of a series."""
    shares = [(one.num_tokens / whole, one) for one in expected]
    points = [(share, one.tau) for share, one in shares]
    return points, style, [(share, one.low, one.high) for share, one in shares]


def _table(curve: LearningCurve) -> Table:
    rows = [
        (
            f"{point.data_fraction:.4g}",
            f"{point.num_tokens:,}",
            f"{point.num_steps:,}",
            f"{point.tau:.3f} ({point.tau_low:.3f} to {point.tau_high:.3f})",
        )
        for point in curve.points
    ]
    whole = curve.points[-1]
    rows += [
        (
            f"{whole.data_fraction * one.num_tokens / whole.num_tokens:.4g}",
            f"{one.num_tokens:,}",
            "-",
            f"{one.tau:.3f} ({one.low:.3f} to {one.high:.3f}), expected",
        )
        for one in curve.expected
    ]
    header = ("share of the data", "tokens", "steps", "tau")
    return Table("tau by the amount of data", header, rows)
