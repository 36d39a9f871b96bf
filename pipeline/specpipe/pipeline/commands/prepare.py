"""`specpipe prepare`."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from specpipe.pipeline.commands.dump.options import INPUT
from specpipe.pipeline.launch.provenance import provenance
from specpipe.pipeline.terminal.console import file_size, note, quiet_libraries, show
from specpipe.pipeline.terminal.flags import flags_of
from specpipe.pipeline.terminal.options import (
    GroupedCommand,
    config_option,
    json_option,
    with_options,
)
from specpipe.pipeline.terminal.progress import LOG_SECONDS
from specpipe.pipeline.terminal.settings import load_config
from specpipe.pipeline.terminal.shown_sample import show_masked
from specpipe.schemas.settings.stages import PrepareConfig


@click.command(cls=GroupedCommand, short_help="Tokenise once, into a file, and show the loss mask.")
@config_option
@with_options(flags_of((PrepareConfig,), {"What goes in": INPUT, "What comes out": ("--out",)}))
@json_option
def prepare(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Tokenise conversations and texts into a file of pretokenised samples.

    \b
      specpipe prepare --target sample_data/target \\
        --data sample_data/train/conversations.jsonl --out runs/train.parquet

    A row has messages, conversations (ShareGPT), prompt and completion, text, or input_ids; see
    docs/quickstart.md.

    Look at the example that it shows: what is supervised must be what the assistant wrote. A dump
    of the file holds the same samples as a dump of the data. Refused inputs are listed beside it,
    in FILE.rejected.jsonl. Run again, it does nothing unless the data, the target's tokenizer or
    the settings have changed.
    """
    config = load_config(PrepareConfig, config_file, flags)
    quiet_libraries()
    from specpipe.stages.prepare.run import prepare_data

    about = json.loads(provenance(config.model_dump(mode="json")))
    result = prepare_data(config, about, _Log())
    example, counts = result.example, result.counts
    if example is not None:
        show_masked(
            f"The first sample, from {example.source}",
            f"{example.num_supervised:,} of {example.num_tokens:,} tokens are supervised",
            example.pieces,
        )
    masked = counts.num_partly_masked
    rows = [
        ("file", result.out),
        ("samples", f"{counts.num_samples:,}, of which {counts.num_truncated:,} truncated"),
        ("not in it", f"{counts.num_rejected:,} refused, {counts.num_left_out:,} too long"),
        *([("partly masked", f"{masked:,}, see {result.rejected}")] if masked else []),
        ("tokens", f"{counts.num_tokens:,}, of which {counts.num_supervised:,} supervised"),
        ("size", file_size(result.num_bytes)),
        ("seconds", "nothing to do" if result.did_nothing else f"{result.seconds:.1f}"),
    ]
    record = asdict(result) | {"counts": counts.model_dump(mode="json")}
    show("Prepared", rows, record, as_json=as_json)


class _Log:
    """A line now and then: how many samples there are is not known before the end."""

    def __init__(self) -> None:
        self._logged = time.monotonic()

    def __call__(self, num_samples: int) -> None:
        if time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            note(f"prepare: {num_samples:,} samples")
