"""tune.html: the trials of a search and its result, with pictures."""

from collections.abc import Sequence
from pathlib import Path

from specpipe.pipeline.tune.words import trials_table
from specpipe.schemas.records.tune import Trial, TuneResult
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.report.blocks import Block, Figures, Missing, Page, Section, Table, Tile
from specpipe.stages.report.chart import NUM_STYLES, Axis, Figure, Series, line_chart
from specpipe.stages.report.page import render

_TAU = Axis("tau (tokens per round)")


def tune_page(result: TuneResult, recipe: ResolvedTrainConfig, out: Path) -> bytes:
    """The page as HTML, which stands alone."""
    return render(
        Page(
            "Search for settings",
            str(out),
            _tiles(result),
            [_found(result), _trials(result), _settings(result, recipe)],
            "specpipe tune",
        )
    )


def _tiles(result: TuneResult) -> Sequence[Tile]:
    variant = result.variant.replace("_", " ")
    note = f"{variant}, {result.num_draft_tokens} draft tokens"
    back = result.held_back
    tiles = [Tile("trials", f"{len(result.trials):,}", f"rungs: {len(result.rungs)}")]
    if back is not None:
        tiles += [
            Tile("the recipe", f"{back.recipe[0]:.3f}", note),
            Tile("best trial", f"{back.chosen[0]:.3f}", note),
        ]
    kept = f"trial {result.kept}" if result.kept else "the recipe"
    note = f"{result.gain:+.1%} on prompts held back"
    return [*tiles, Tile("kept", kept, note, "good" if result.kept else "")]


def _found(result: TuneResult) -> Section:
    lead = (
        "Trials are compared on one half of the held-out prompts. What the best of them comes to is"
        " said by the other half, by which nothing was chosen."
    )
    return Section("found", "What was found", lead, [_held_back(result)])


def _held_back(result: TuneResult) -> Block:
    back = result.held_back
    if back is None:
        return Missing("No trial was better than the recipe, so there is nothing to compare.")
    rows = [
        (name, f"{tau:.3f}", f"{low:.3f} to {high:.3f}")
        for name, (tau, low, high) in (
            ("the recipe", back.recipe),
            (f"trial {result.best}", back.chosen),
        )
    ]
    tau, low, high = back.difference
    rows.append(("difference", f"{tau:+.3f}", f"{low:+.3f} to {high:+.3f}"))
    kept = "" if result.kept else " The gain did not hold there: the recipe is kept."
    if result.kept and back.may_be_chance:
        kept = " The interval holds 0: the gain may be chance."
    caption = f"{back.num_samples:,} samples; the difference is paired over them.{kept}"
    title = f"Held back, {result.rungs[-1].steps:,} of {result.full_steps:,} steps"
    return Table(title, ["", "tau", "95 % interval"], rows, caption)


def _trials(result: TuneResult) -> Section:
    lead = (
        "Each rung trains anew, with its own schedule; the best go on to the next one, the recipe"
        " takes part in all, and from the second on a trial between the best three before. Steps"
        " are of the recipe's size: a trial with larger ones takes fewer, on as much text."
        " Learning rates are those of a whole run, given ones too; a short rung takes the higher"
        " ones that go with its length."
    )
    figures = [_by_steps(result), _by_rate(result)]
    blocks: list[Block] = [Figures([figure for figure in figures if figure is not None])]
    blocks.append(Table("tau of every trial", *trials_table(result)))
    return Section("trials", "Trials", lead, blocks)


def _by_steps(result: TuneResult) -> Figure | None:
    """The recipe and the best trial as lines, the others as marks."""
    apart = {"the recipe": 0, f"trial {result.best}": result.best}
    series = [
        Series(name, _points(result, result.trials[number]), style)
        for style, (name, number) in enumerate(apart.items())
        if style == 0 or number != 0
    ]
    others = [
        point
        for number, trial in enumerate(result.trials)
        if number not in apart.values()
        for point in _points(result, trial)
    ]
    series.append(Series("other trials", others, 2, is_joined=False))
    x = Axis("steps of the recipe's size", "log2")
    return line_chart("tau by steps", x, _TAU, series)


def _points(result: TuneResult, trial: Trial) -> list[tuple[float, float]]:
    return [
        (float(rung.steps), score.tau)
        for at, rung in enumerate(result.rungs)
        if (score := trial.score(at)) and score.tau
    ]


def _by_rate(result: TuneResult) -> Figure | None:
    """A series for each rung; None where the rate was given."""
    if "learning_rate" not in result.searched:
        return None
    series = [
        Series(
            f"{rung.steps:,} steps",
            [
                (float(trial.settings["learning_rate"]), score.tau)
                for trial in result.trials
                if (score := trial.score(at)) and score.tau
            ],
            at % NUM_STYLES,
            is_joined=False,
        )
        for at, rung in enumerate(result.rungs)
    ]
    recipe = float(result.trials[0].settings["learning_rate"])
    x = Axis("learning rate", "log10")
    return line_chart("tau by learning rate", x, _TAU, series, mark_x=(recipe, "recipe"))


def _settings(result: TuneResult, recipe: ResolvedTrainConfig) -> Section:
    before = recipe.flat("json")
    rows = [
        (name, f"{value}", "" if before.get(name) == value else f"{before.get(name)}")
        for name, value in result.settings.items()
    ]
    table = Table("train.yaml", ["setting", "kept", "recipe, where other"], rows, is_words=True)
    lead = "What stands in train.yaml, for specpipe train --config."
    return Section("settings", "Settings", lead, [table])
