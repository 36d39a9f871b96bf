"""`specpipe choose`."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.pipeline.commands.train.idle_flags import Counts, refuse_idle
from specpipe.pipeline.commands.train.options import DATA, DRAFTER, MODELS, RUN, TRAIN, config_of
from specpipe.pipeline.commands.train.progress import TrialFigures
from specpipe.pipeline.launch.provenance import write_provenance
from specpipe.pipeline.terminal.console import note, quiet_libraries, show, show_columns
from specpipe.pipeline.terminal.flags import Flag, flag, flags_of
from specpipe.pipeline.terminal.options import (
    GroupedCommand,
    comma_words,
    config_option,
    json_option,
    with_options,
)
from specpipe.pipeline.terminal.progress import progress
from specpipe.pipeline.terminal.settings import given
from specpipe.schemas.drafters.registry import KINDS
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.choose import ChooseConfig
from specpipe.stages.process.stop import stops_early

if TYPE_CHECKING:
    from specpipe.schemas.records.choose import ChooseResult

_OWN: dict[str, tuple[str | Flag, ...]] = {
    "The comparison": (
        "--budget",
        flag("--drafters", metavar=f"{'|'.join(KINDS)},...", callback=comma_words),
    ),
    "The engine": (
        "--engine/--no-engine",
        "--step-times",
        "--target",
        "--serve-batch-sizes",
        "--serve-max-tokens",
        "--serve-data",
        "--trust-remote-code",
    ),
}
_TIMES_AN_ENGINE: Counts[ChooseConfig] = dict.fromkeys(
    ("target", "serve_batch_sizes", "serve_max_tokens", "serve_data", "trust_remote_code"),
    (
        lambda config: config.engine and config.step_times is None,
        "an engine that is timed here, without no_engine and step_times",
    ),
)
_NOT_HERE = ("--layers", "--learning-curve", "--require-servable")


def _of_training() -> Iterator[tuple[str, tuple[str | Flag, ...]]]:
    """Flags of training that hold for every drafter."""
    for heading, listed in TRAIN.items():
        if heading == DRAFTER:
            yield "The drafters", ("--draft-vocab-size", "--draft-vocab-by")
        elif heading in (DATA, RUN):
            yield heading, tuple(one for one in listed if one not in _NOT_HERE)
        else:
            yield heading, listed


_OPTIONS = flags_of((ChooseConfig, *MODELS), _OWN | dict(_of_training()))


@click.command(cls=GroupedCommand, short_help="Choose an architecture that suits a dump.")
@config_option
@with_options(_OPTIONS)
@json_option
def choose(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Compare drafter architectures on one dump, and say which one to train.

    \b
      specpipe dump   --for eagle3,dflash ... --out runs/dump
      specpipe choose --dump runs/dump --out runs/choice --budget 1h

    A drafter is worth the tokens that a round yields (tau) over what a round costs. Every
    architecture is trained by the same number of steps, and its tau replayed on held-out prompts
    for 1 to K draft tokens; steps of the engine are timed with a drafter of the same shape, whose
    weights do not matter. The speed-up that follows at each batch size decides, the first one
    before the others. OUT gets train.yaml, choose.json, choose.html, a page with pictures,
    and step_times.json.

    Compared are all architectures that the dump holds the states for and vLLM serves the target
    with, or --drafters. Without vLLM, or with --no-engine, only tau is known, and none is
    recommended; --step-times takes the step_times.json of a run on the machine that will serve.

    The budget is for everything; a time is planned by a few measured steps. Killed at any moment,
    the same command goes on; SIGTERM and --time-limit save and exit with code 5.
    """
    config = config_of(ChooseConfig, config_file, flags)
    refuse_idle(config, given(flags), _TIMES_AN_ENGINE)
    if "WORLD_SIZE" in os.environ:
        raise ConfigError("specpipe choose is one process; leave torchrun out")
    quiet_libraries()
    with stops_early(config.time_limit):
        from specpipe.pipeline.choose.compare import choose as compare
        from specpipe.pipeline.choose.folder import ChooseFolder

        with progress("choose", "steps") as report:
            figures = TrialFigures(report)
            result = compare(config, progress=figures, say=lambda line: note(f"choose: {line}"))
    folder = ChooseFolder(config.out)
    if not result.did_nothing:
        write_provenance(folder.path, config)
    _show(result)
    seconds = folder.clock().seconds
    values = {"out": config.out, **result.model_dump(mode="json"), "seconds": seconds}
    show("Choice", _rows(config, result, seconds), values, as_json=as_json)


def _show(result: "ChooseResult") -> None:
    from specpipe.pipeline.choose.words import cells, header, notes

    rows = [cells(one, result) for one in result.compared]
    show_columns(f"After {result.steps:,} steps of each (* recommended)", header(result), rows)
    for line in notes(result):
        note(line)


def _rows(config: ChooseConfig, result: "ChooseResult", seconds: float) -> list[tuple[str, str]]:
    from specpipe.schemas.records.choose import PAGE_FILE
    from specpipe.schemas.records.tune import SETTINGS_FILE
    from specpipe.schemas.speedup import in_words

    rows = [("page", str(Path(config.out) / PAGE_FILE))]
    if result.recommended is None:
        rows.append(("recommended", "none"))
    else:
        file = shlex.quote(str(Path(config.out) / SETTINGS_FILE))
        command = f"specpipe train --config {file} --out RUN"
        rows += [("recommended", result.recommended), ("train it", command)]
    if result.schedule:
        rows.append(("draft tokens", in_words(result.schedule)))
    rows += [("because" if at == 0 else "", line) for at, line in enumerate(result.reasons)]
    done = "nothing to do" if result.did_nothing else f"{seconds:.1f}"
    return [*rows, ("seconds", done)]
