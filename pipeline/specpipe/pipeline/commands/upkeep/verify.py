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
        result = read_all(url, progress=report)
    for damage in result.damages[:SHOWN_DAMAGES]:
        note(f"{damage.key}: {damage.problem}")
    if len(result.damages) > SHOWN_DAMAGES:
        note(f"... and {len(result.damages) - SHOWN_DAMAGES} more")
    shown = without_credentials(url)
    rows = [
        ("dump", shown),
        ("state", "complete" if result.complete else "unfinished"),
        ("read", f"{result.num_objects:,} objects, {file_size(result.num_bytes)}"),
        ("damaged", f"{len(result.damages):,}"),
    ]
    show("Verify", rows, {"url": shown, **asdict(result)}, as_json=as_json)
    if result.damages:
        note(
            f"specpipe: {len(result.damages)} of the objects of {shown} are damaged; remove the"
            " objects named above and run `specpipe dump` again, which makes them anew"
        )
        raise click.exceptions.Exit(IntegrityError.exit_code)
    if not result.complete:
        note("specpipe: sound, but unfinished: run `specpipe dump` again to continue")
        raise click.exceptions.Exit(UnfinishedError.exit_code)
