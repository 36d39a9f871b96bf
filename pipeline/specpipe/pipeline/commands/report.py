"""`specpipe report`."""

from pathlib import Path
from typing import Any

import click

from specpipe.pipeline.terminal.console import file_size, note, quiet_libraries, show
from specpipe.pipeline.terminal.flags import flags_of
from specpipe.pipeline.terminal.options import (
    GroupedCommand,
    config_option,
    json_option,
    with_options,
)
from specpipe.pipeline.terminal.settings import load_config
from specpipe.schemas.settings.stages import ReportConfig
from specpipe.stages.process.stop import stops_early

_OPTIONS = flags_of(
    (ReportConfig,),
    {"The page": ("--run", "--artifact", "--dump", "--out", "--samples", "--texts")},
)


@click.command(cls=GroupedCommand, short_help="Write one HTML page about a run.")
@config_option
@with_options(_OPTIONS)
@json_option
def report(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Write one HTML page on a run: what was trained, how well it drafts, and where.

    \b
      specpipe report --run runs/drafter --artifact runs/artifact \\
        --out report.html

    The page stands alone: it opens from disk, runs no script and asks for nothing from the network.
    It shows loss and acceptance over training, tokens per round with their intervals and what the
    engine measured, acceptance by position and by kind of token, texts with accepted and rejected
    drafts, and the validation. It reads files only; what is not there (no export, no evaluation, a
    dump that has moved) is said on the page. docs/report.md explains each part.
    """
    config = load_config(ReportConfig, config_file, flags)
    quiet_libraries()
    with stops_early():
        from specpipe.stages.report.run import run

        result = run(config, progress=note)
    rows = [
        ("page", f"{result.out} ({file_size(result.num_bytes)})"),
        ("samples drafted", f"{result.num_samples:,}"),
        *(("missing", text) for text in result.missing),
    ]
    show("Report", rows, result.model_dump(mode="json"), as_json=as_json)
