"""`specpipe verify` and `specpipe gc`: a dump, read and cleaned up."""

from dataclasses import asdict

import click

from specpipe.pipeline.console import counted, file_size, note, quiet_libraries, show
from specpipe.pipeline.options import json_option
from specpipe.pipeline.progress import progress
from specpipe.schemas.errors import IntegrityError, UnfinishedError
from specpipe.schemas.location import without_credentials

SHOWN_DAMAGES = 50
SHOWN_GARBAGE = 50


@click.command(short_help="Read a whole dump and name what is damaged.")
@click.argument("url")
@json_option
def verify(url: str, as_json: bool) -> None:
    """Read every object of the dump at URL and name each one that is damaged or missing.

    Exit code 0: complete and sound. 4: something is damaged. 5: sound so far, but unfinished.
    """
    quiet_libraries()
    from specpipe.stages.storage.verify import verify as read_all

    with progress("verify", "bytes") as report:
        found = read_all(url, progress=report)
    for damage in found.damages[:SHOWN_DAMAGES]:
        note(f"{damage.key}: {damage.problem}")
    if len(found.damages) > SHOWN_DAMAGES:
        note(f"... and {len(found.damages) - SHOWN_DAMAGES} more")
    shown = without_credentials(url)
    rows = [
        ("dump", shown),
        ("state", "complete" if found.complete else "unfinished"),
        ("read", f"{found.num_objects:,} objects, {file_size(found.num_bytes)}"),
        ("damaged", f"{len(found.damages):,}"),
    ]
    show("Verify", rows, {"url": shown, **asdict(found)}, as_json=as_json)
    if found.damages:
        note(
            f"specpipe: {len(found.damages)} of the objects of {shown} are damaged; remove the"
            " objects named above and run `specpipe dump` again, which makes them anew"
        )
        raise click.exceptions.Exit(IntegrityError.exit_code)
    if not found.complete:
        note("specpipe: sound, but unfinished: run `specpipe dump` again to continue")
        raise click.exceptions.Exit(UnfinishedError.exit_code)


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
    from specpipe.stages.dump.gc import gc as collect

    found = collect(url, dry_run=dry_run, force=force)
    for piece in found.garbage[:SHOWN_GARBAGE]:
        note(f"{piece.key}: {counted(piece.num_objects, 'object')}, {file_size(piece.num_bytes)}")
    if len(found.garbage) > SHOWN_GARBAGE:
        note(f"... and {len(found.garbage) - SHOWN_GARBAGE:,} more")
    rows = [
        ("dump", found.url),
        ("state", "complete" if found.complete else "unfinished"),
        (
            "would free" if dry_run else "freed",
            f"{counted(found.num_objects, 'object')}, {file_size(found.num_bytes)}",
        ),
    ]
    show("Garbage", rows, asdict(found), as_json=as_json)
    if dry_run and found.garbage and not found.complete:
        note("specpipe: unfinished, so only --force removes it, and only if no worker is at work")
