"""`specpipe inspect`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from specpipe.pipeline.commands.dump.generation_rows import generation_rows
from specpipe.pipeline.terminal.console import file_size, quiet_libraries, show, show_columns
from specpipe.pipeline.terminal.options import json_option
from specpipe.pipeline.terminal.shown_sample import show_masked

if TYPE_CHECKING:
    from specpipe.stages.upkeep.inspect import Inspection, LayerSize


@click.command(short_help="Show a dump to a person.")
@click.argument("url")
@click.option(
    "--samples",
    "num_samples",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Samples to show as text.",
)
@json_option
def inspect(url: str, num_samples: int, as_json: bool) -> None:
    """Show what the dump at URL is and holds, finished or not.

    Identity, progress, the size of the states of each layer (and of int8 states, what the rounding
    cost), the attainable mass m for each size of the draft vocabulary (the ceiling of the
    acceptance), and a sample with its supervised tokens in colour, or in brackets where there is
    none.
    """
    quiet_libraries()
    from specpipe.stages.upkeep.inspect import inspect as look

    found = look(url, num_samples)
    if found.layers:
        _show_layers(found.layers)
    if found.attainable:
        show_columns(
            "Draft vocabulary",
            ["size D", "attainable mass m"],
            [(f"{size:,}", f"{mass:.4f}") for size, mass in found.attainable.items()],
        )
    for sample in found.samples:
        show_masked(
            f"Sample {sample.sample_id}, from {sample.source}",
            f"mean log-probability {sample.mean_logprob:.3f}, {sample.num_supervised:,} of"
            f" {sample.num_tokens:,} tokens are supervised",
            sample.pieces,
        )
    show("Dump", _rows(found), _result(found), as_json=as_json)


def _show_layers(layers: "tuple[LayerSize, ...]") -> None:
    is_int8 = any(layer.error is not None for layer in layers)
    header = ["layer", "rms", "largest", *(["int8 error"] if is_int8 else [])]
    rows = [
        (
            layer.name,
            f"{layer.rms:.3f}",
            f"{layer.largest:.2f}",
            *([_percent(layer.error)] if is_int8 else []),
        )
        for layer in layers
    ]
    show_columns("States", header, rows)


def _percent(error: float | None) -> str:
    return "" if error is None else f"{100 * error:.2f} %"


def _rows(found: "Inspection") -> list[tuple[str, str]]:
    identity = found.identity
    target = identity.target
    rejected = "not known yet" if found.num_rejected is None else f"{found.num_rejected:,}"
    planned = max(1, found.num_planned_shards)
    return [
        ("dump", found.url),
        ("state", "complete" if found.complete else "unfinished"),
        (
            "shards",
            f"{found.num_shards:,} of {found.num_planned_shards:,}"
            f" ({100 * found.num_shards // planned} %)",
        ),
        ("samples", f"{found.num_samples:,} (refused: {rejected})"),
        ("tokens", f"{found.num_tokens:,}, of which {found.num_rows:,} are verifier rows"),
        ("size", file_size(found.num_bytes)),
        ("target", f"{target.name} ({target.architecture}), run by {identity.backend}"),
        ("layers", f"{', '.join(map(str, identity.layers))} of {target.num_layers}"),
        ("states", f"{identity.states_dtype}, in {identity.shard_format} shards"),
        ("logits", identity.logits),
        ("compression", identity.compression),
        ("text", identity.text.in_words),
        *generation_rows(found.generation),
        ("fingerprint", found.fingerprint),
    ]


def _result(found: "Inspection") -> dict[str, Any]:
    return {**asdict(found), "identity": found.identity.model_dump(mode="json")}
