"""`specpipe verify`."""

from dataclasses import asdict

import click

from specpipe.pipeline.terminal.console import file_size, note, quiet_libraries, show
from specpipe.pipeline.terminal.options import json_option
from specpipe.pipeline.terminal.progress import progress
from specpipe.schemas.errors import IntegrityError, UnfinishedError
from specpipe.schemas.location import without_credentials

SHOWN_DAMAGES = 50


@click.command(short_help="Check every object of a dump.")
@click.argument("url")
@json_option
def verify(url: str, as_json: bool) -> None:
    """Read every object of the dump at URL and name each one that is damaged or missing.

    Exit code 0: complete and sound. 4: something is damaged. 5: sound so far, but unfinished.
    """
    quiet_libraries()
    from specpipe.stages.upkeep.verify.run import verify as read_all

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
