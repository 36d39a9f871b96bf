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

    inspection = look(url, num_samples)
    if inspection.layers:
        _show_layers(inspection.layers)
    if inspection.attainable:
        show_columns(
            "Draft vocabulary",
            ["size D", "attainable mass m"],
            [(f"{size:,}", f"{mass:.4f}") for size, mass in inspection.attainable.items()],
        )
    for sample in inspection.samples:
        show_masked(
            f"Sample {sample.sample_id}, from {sample.source}",
            f"mean log-probability {sample.mean_logprob:.3f}, {sample.num_supervised:,} of"
            f" {sample.num_tokens:,} tokens are supervised",
            sample.pieces,
        )
    show("Dump", _rows(inspection), _result(inspection), as_json=as_json)


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


def _rows(inspection: "Inspection") -> list[tuple[str, str]]:
    identity = inspection.identity
    target = identity.target
    rejected = (
        "not known yet" if inspection.num_rejected is None else f"{inspection.num_rejected:,}"
    )
    planned = max(1, inspection.num_planned_shards)
    return [
        ("dump", inspection.url),
        ("state", "complete" if inspection.complete else "unfinished"),
        (
            "shards",
            f"{inspection.num_shards:,} of {inspection.num_planned_shards:,}"
            f" ({100 * inspection.num_shards // planned} %)",
        ),
        ("samples", f"{inspection.num_samples:,} (refused: {rejected})"),
        (
            "tokens",
            f"{inspection.num_tokens:,}, of which {inspection.num_rows:,} are verifier rows",
        ),
        ("size", file_size(inspection.num_bytes)),
        ("target", f"{target.name} ({target.architecture}), run by {identity.backend}"),
        ("layers", f"{', '.join(map(str, identity.layers))} of {target.num_layers}"),
        ("states", f"{identity.states_dtype}, in {identity.shard_format} shards"),
        ("logits", identity.logits),
        ("compression", identity.compression),
        ("text", identity.text.in_words),
        *generation_rows(inspection.generation),
        ("fingerprint", inspection.fingerprint),
    ]


def _result(inspection: "Inspection") -> dict[str, Any]:
    return {**asdict(inspection), "identity": inspection.identity.model_dump(mode="json")}
