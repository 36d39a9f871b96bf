"""`specpipe verify` and `specpipe inspect`: a dump, finished or not."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from specpipe.pipeline.console import (
    file_size,
    note,
    progress,
    quiet_libraries,
    show,
    show_columns,
    stderr,
)
from specpipe.pipeline.options import json_option
from specpipe.schemas.errors import IntegrityError, UnfinishedError
from specpipe.schemas.location import without_credentials

if TYPE_CHECKING:
    from specpipe.stages.dump.inspect import Inspection

SHOWN_DAMAGES = 50


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


@click.command(short_help="Show a dump to a person.")
@click.argument("url")
@json_option
def inspect(url: str, as_json: bool) -> None:
    """Show what the dump at URL is and holds, finished or not.

    Identity, progress, the size of the states of each layer, the attainable mass m for each size of
    the draft vocabulary (the ceiling of the acceptance), and one sample with its supervised tokens
    in colour, or in brackets where there is none.
    """
    quiet_libraries()
    from specpipe.stages.dump.inspect import inspect as look

    found = look(url)
    if found.layers:
        show_columns(
            "States",
            ["layer", "rms", "largest"],
            [(x.name, f"{x.rms:.3f}", f"{x.largest:.2f}") for x in found.layers],
        )
    if found.attainable:
        show_columns(
            "Draft vocabulary",
            ["size D", "attainable mass m"],
            [(f"{size:,}", f"{mass:.4f}") for size, mass in found.attainable.items()],
        )
    _show_sample(found)
    show("Dump", _rows(found), _result(found), as_json=as_json)


def _rows(found: "Inspection") -> list[tuple[str, str]]:
    identity = found.identity
    target = identity.target
    text = identity.text
    origin = text.kind if text.temperature is None else f"{text.kind} at {text.temperature:g}"
    rejected = "not known yet" if found.num_rejected is None else f"{found.num_rejected:,}"
    return [
        ("dump", found.url),
        ("state", "complete" if found.complete else "unfinished"),
        ("shards", f"{found.num_shards:,} of {found.num_planned_shards:,}"),
        ("samples", f"{found.num_samples:,} (refused: {rejected})"),
        ("tokens", f"{found.num_tokens:,}, of which {found.num_rows:,} are verifier rows"),
        ("size", file_size(found.num_bytes)),
        ("target", f"{target.name} ({target.architecture})"),
        ("layers", f"{', '.join(map(str, identity.layers))} of {target.num_layers}"),
        ("text", origin),
        ("fingerprint", found.fingerprint),
    ]


def _show_sample(found: "Inspection") -> None:
    sample = found.sample
    if sample is None:
        return
    note(
        f"Sample {sample.sample_id} from {sample.source}: {sample.num_supervised} of"
        f" {sample.num_tokens} tokens are supervised, mean log-probability"
        f" {sample.mean_logprob:.3f}"
    )
    text = Text()
    for piece, supervised in sample.pieces:
        if stderr.is_terminal:
            text.append(piece, style="green" if supervised else "dim")
        else:
            text.append(f"[{piece}]" if supervised else piece)
    stderr.print(text)


def _result(found: "Inspection") -> dict[str, Any]:
    return {**asdict(found), "identity": found.identity.model_dump(mode="json")}
