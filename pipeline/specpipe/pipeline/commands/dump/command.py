"""`specpipe dump`."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from specpipe.pipeline.commands.dump.generation_rows import generation_rows
from specpipe.pipeline.commands.dump.options import dump_config, dump_options
from specpipe.pipeline.commands.engine_support import say_served_of_dump
from specpipe.pipeline.launch.provenance import provenance
from specpipe.pipeline.launch.worker_index import own_share
from specpipe.pipeline.terminal.console import file_size, quiet_libraries, show
from specpipe.pipeline.terminal.options import (
    GroupedCommand,
    config_option,
    json_option,
    with_options,
)
from specpipe.pipeline.terminal.progress import progress
from specpipe.schemas.records.checkpoint import PROVENANCE_FILE
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.process.stop import stops_early


@click.command(cls=GroupedCommand, short_help="Run the target once and write its states to a dump.")
@config_option
@with_options(dump_options)
@json_option
def dump(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Run the target once over the data and write what training needs of it to a dump.

    \b
      specpipe dump --target sample_data/target \\
        --data sample_data/train/conversations.jsonl --out runs/dump

    Each row of a data file is a conversation (messages, ShareGPT's conversations, or prompt and
    completion), which is tokenised with the target's chat template, plain text (text, or prompt and
    completion), or pretokenised (input_ids, attention_mask, labels). The dump holds the target's
    auxiliary hidden states, the final states where a supervised token follows, and the target's
    head: it is all that `specpipe train` reads. Stopped in the middle, the same command continues;
    refused inputs are listed in rejected.jsonl.

    Drafters learn best from what the target itself writes: with --generate it answers the prompts
    of the data while its states are captured. `specpipe plan` takes the same flags and says what a
    dump will take before anything is spent.
    """
    config = dump_config(config_file, flags)
    if config.worker_index == "auto":
        config = config.model_copy(update=own_share(os.environ, config.worker_count))
    quiet_libraries()
    say_served_of_dump(config)
    # Stopped early, it lets its workers go.
    with stops_early(config.time_limit), progress("dump", "tokens") as report:
        from specpipe.pipeline.launch.executor import executor_of
        from specpipe.stages.dump.run import run

        result = run(config, execute=executor_of(config), progress=report)
    if not result.did_nothing:
        from specpipe.stages.storage.store.folder import Folder

        Folder.open(config.out).write(PROVENANCE_FILE, provenance(config.model_dump(mode="json")))
    rows = [
        ("dump", result.url),
        ("state", "complete" if result.complete else "others have their share to do"),
        ("shards", f"{result.num_shards:,}, by {_workers(config)}"),
        ("samples", f"{result.num_samples:,}, of which {result.num_truncated:,} truncated"),
        ("not dumped", f"{result.num_rejected:,} refused, {result.num_left_out:,} too long"),
        ("tokens", f"{result.num_tokens:,}, of which {result.num_rows:,} are verifier rows"),
        *generation_rows(result.generation),
        ("size", file_size(result.num_bytes)),
        ("seconds", "nothing to do" if result.did_nothing else f"{result.seconds:.1f}"),
    ]
    show("Dump", rows, asdict(result), as_json=as_json)


def _workers(config: DumpConfig) -> str:
    if config.worker_index is not None:
        return f"worker {config.worker_index} of {config.worker_count} and others"
    on_ray = " on Ray" if config.executor == "ray" else ""
    return f"{config.workers} worker{'s' if config.workers > 1 else ''}{on_ray}"
