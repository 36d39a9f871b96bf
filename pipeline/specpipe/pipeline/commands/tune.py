"""`specpipe tune`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.pipeline.commands.engine_support import say_served_of_training
from specpipe.pipeline.commands.train.options import MODELS, TRAIN, config_of
from specpipe.pipeline.commands.train.progress import TrialFigures
from specpipe.pipeline.commands.train.recipe_help import recipe_help
from specpipe.pipeline.launch.provenance import write_provenance
from specpipe.pipeline.terminal.console import note, quiet_libraries, show, show_columns
from specpipe.pipeline.terminal.flags import flags_of
from specpipe.pipeline.terminal.options import (
    GroupedCommand,
    config_option,
    json_option,
    with_options,
)
from specpipe.pipeline.terminal.progress import progress
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.tune import TuneConfig
from specpipe.stages.process.stop import stops_early

if TYPE_CHECKING:
    from specpipe.schemas.records.tune import TuneResult

_OPTIONS = flags_of((TuneConfig, *MODELS), {"The search": ("--budget", "--max-trials"), **TRAIN})


@click.command(
    cls=GroupedCommand,
    short_help="Search settings of training that suit a dump.",
    epilog=recipe_help(),
)
@config_option
@with_options(_OPTIONS)
@json_option
def tune(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Search the settings of training that depend on the data most: learning rate, size of a step,
    weight of the loss of states, norms, weights of the heads.

    \b
      specpipe tune  --dump runs/dump --out runs/tuned --budget 30m
      specpipe train --config runs/tuned/train.yaml --out runs/drafter

    Takes every flag of specpipe train but --learning-curve, and its files. What is given is kept,
    the rest of the five is searched around the recipe, which is trial 0, by successive halving:
    many short runs, the best third three times as long, and so on, each time with one more between
    the best three. Runs are compared by the replayed tau on one half of the held-out prompts; the
    winner is measured on the other half, and if it is not better there, the recipe is kept. OUT
    gets train.yaml, tune.json, and tune.html, a page with pictures.

    Killed at any moment, the same command goes on to the same result; SIGTERM and --time-limit save
    and exit with code 5. A budget in time is planned by a few measured steps, counts over all runs,
    and ends a search that is slower than planned.
    """
    config = config_of(TuneConfig, config_file, flags)
    if "WORLD_SIZE" in os.environ:
        raise ConfigError(
            "specpipe tune is one process; leave torchrun out, or give each GPU a search of its own"
        )
    if config.learning_curve:
        raise ConfigError("learning_curve is for specpipe train, with the settings that are found")
    quiet_libraries()
    with stops_early(config.time_limit):
        from specpipe.pipeline.tune.folder import TuneFolder
        from specpipe.pipeline.tune.search import tune as search

        say_served_of_training(config)
        with progress("tune", "steps") as report:
            figures = TrialFigures(report)
            result = search(config, progress=figures, say=lambda line: note(f"tune: {line}"))
    folder = TuneFolder(config.out)
    if not result.did_nothing:
        write_provenance(folder.path, config)
    _show_trials(result)
    values = {
        "out": config.out,
        **result.model_dump(mode="json"),
        "gain": result.gain,
        "seconds": folder.clock().seconds,
    }
    show("Search", _rows(config, result, folder.clock().seconds), values, as_json=as_json)


def _show_trials(result: "TuneResult") -> None:
    from specpipe.pipeline.tune.words import trials_table

    show_columns("tau by trial and rung (* kept)", *trials_table(result))


def _rows(config: TuneConfig, result: "TuneResult", seconds: float) -> list[tuple[str, str]]:
    from specpipe.schemas.records.tune import PAGE_FILE, SETTINGS_FILE

    out = Path(config.out)
    return [
        ("settings", str(out / SETTINGS_FILE)),
        ("page", str(out / PAGE_FILE)),
        *_compared(result),
        (
            "kept",
            _why_trial(result) if result.kept else _why_recipe(result),
        ),
        ("longest run", f"{out / result.run}: {_length(result)}"),
        ("seconds", "nothing to do" if result.did_nothing else f"{seconds:.1f}"),
    ]


def _compared(result: "TuneResult") -> list[tuple[str, str]]:
    back = result.held_back
    if back is None:
        return []
    text = result.variant.replace("_", " ") + ("" if result.exact else " (estimate)")
    what = f"at {text} with {result.num_draft_tokens} draft tokens, prompts held back"
    named = (("tau, recipe", back.recipe), (f"tau, trial {result.best}", back.chosen))
    tau, low, high = back.difference
    return [
        *((name, f"{tau:.3f} [{low:.3f}, {high:.3f}] {what}") for name, (tau, low, high) in named),
        ("difference", f"{tau:+.3f} [{low:+.3f}, {high:+.3f}], paired over samples"),
    ]


def _why_trial(result: "TuneResult") -> str:
    chance = result.held_back is not None and result.held_back.may_be_chance
    words = ", which may be chance: the interval holds 0" if chance else ""
    return f"trial {result.kept}, {result.gain:+.1%}{words}"


def _why_recipe(result: "TuneResult") -> str:
    if result.held_back is None:
        return "the recipe, which was best"
    return f"the recipe: the gain of trial {result.best} did not hold on the prompts held back"


def _length(result: "TuneResult") -> str:
    steps, full = result.rungs[-1].steps, result.full_steps
    if steps >= full:
        return f"{steps:,} steps, a whole run, whose checkpoint can be exported"
    why = "the time was over" if result.is_cut_short else "a larger --budget trains longer"
    return f"{steps:,} of the {full:,} steps of a whole run ({why})"
