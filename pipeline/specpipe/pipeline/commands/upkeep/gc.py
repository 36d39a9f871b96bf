"""`specpipe gc`."""

from dataclasses import asdict

import click

from specpipe.pipeline.terminal.console import counted, file_size, note, quiet_libraries, show
from specpipe.pipeline.terminal.options import json_option

SHOWN_GARBAGE = 50


@click.command(short_help="Remove what aborted attempts left in a dump.")
@click.argument("url")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--force", is_flag=True, help="Also in an unfinished dump; say so only if nobody works on it."
)
@json_option
def gc(url: str, dry_run: bool, force: bool, as_json: bool) -> None:
    """Remove what attempts that were killed or lost, and half-written files, left in a dump.

    What a manifest or the index names is never removed, and a manifest that cannot be read stops
    the command with exit code 4. An unfinished dump is left alone (exit code 5) unless --force says
    that no worker is at work: nothing in the store tells an attempt that was given up from one that
    is just being written.
    """
    quiet_libraries()
    from specpipe.stages.upkeep.gc import gc as collect

    result = collect(url, dry_run=dry_run, force=force)
    for piece in result.garbage[:SHOWN_GARBAGE]:
        note(f"{piece.key}: {counted(piece.num_objects, 'object')}, {file_size(piece.num_bytes)}")
    if len(result.garbage) > SHOWN_GARBAGE:
        note(f"... and {len(result.garbage) - SHOWN_GARBAGE:,} more")
    rows = [
        ("dump", result.url),
        ("state", "complete" if result.complete else "unfinished"),
        (
            "would free" if dry_run else "freed",
            f"{counted(result.num_objects, 'object')}, {file_size(result.num_bytes)}",
        ),
    ]
    show("Garbage", rows, asdict(result), as_json=as_json)
    if dry_run and result.garbage and not result.complete:
        note("specpipe: unfinished, so only --force removes it, and only if no worker is at work")
