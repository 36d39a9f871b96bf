"""`specpipe dump`."""

import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from specpipe.pipeline.console import file_size, progress, quiet_libraries, show
from specpipe.pipeline.options import comma_integers, config_option, json_option
from specpipe.pipeline.provenance import provenance
from specpipe.pipeline.settings import load_config
from specpipe.pipeline.worker_index import own_share
from specpipe.schemas.checkpoint import PROVENANCE_FILE
from specpipe.schemas.config import DumpConfig


@click.command(short_help="Run the target once and write its states to a dump.")
@config_option
@click.option("--target", help="Local folder or hub id of the target.")
@click.option("--data", multiple=True, help="JSONL file or URL; may be given several times.")
@click.option("--out", help="Root of the dump: a path or an fsspec URL.")
@click.option("--revision", help="Revision of a hub target.")
@click.option("--backend", type=click.Choice(["auto", "hf"]), help="What runs the target.")
@click.option("--format", type=click.Choice(["zarr"]), help="Storage format of the shards.")
@click.option("--logits", type=click.Choice(["final"]), help="What is kept of the logits.")
@click.option(
    "--layers",
    callback=comma_integers,
    help="Auxiliary layers, e.g. 2,16,29: id k enters decoder layer k. [default: 2, n//2, n-3]",
)
@click.option("--context-length", type=int, help="Truncate longer samples to this many tokens.")
@click.option(
    "--text-temperature",
    type=float,
    help="Say that this target wrote the answers, at this temperature (0: greedy).",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float32"]),
    help="Dtype in which the target runs.  [default: the checkpoint's own]",
)
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")
@click.option("--batch-tokens", type=int, help="Most tokens of one forward pass. [default: 8192]")
@click.option("--shard-tokens", type=int, help="Tokens of one shard. [default: 32768]")
@click.option("--chunk-tokens", type=int, help="Most rows of a chunk. [default: about 48 MiB]")
@click.option("--max-rejected", type=int, help="Malformed inputs to tolerate. [default: 0]")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    help="Workers are processes of this machine, or actors of a Ray cluster.",
)
@click.option("--workers", type=int, help="Engines of this command. [default: 1]")
@click.option(
    "--worker-index",
    metavar="N|auto",
    help="This is worker N of --worker-count; auto: as SLURM or a Kubernetes indexed job says.",
)
@click.option("--worker-count", type=int, help="Commands that share the dump.")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run the target's own code.")
@json_option
def dump(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Run the target once over the data and write what training needs of it to a dump.

    \b
      specpipe dump --target sample_data/target \\
        --data sample_data/train/conversations.jsonl --out runs/dump

    Each line of a data file is either pretokenised (input_ids, attention_mask, labels) or a
    conversation (messages), which is tokenised with the target's chat template. The dump holds the
    target's auxiliary hidden states, the final states where a supervised token follows, and the
    target's head: it is all that `specpipe train` reads. Stopped in the middle, the same command
    continues; refused inputs are listed in rejected.jsonl.
    """
    config = load_config(DumpConfig, config_file, flags)
    if config.worker_index == "auto":
        config = config.model_copy(update=own_share(os.environ, config.worker_count))
    # A scheduler's SIGTERM ends the command as an interrupt does: workers are let go, exit code 5.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    quiet_libraries()
    from specpipe.pipeline.executors import executor_of
    from specpipe.stages.dump.run import run
    from specpipe.stages.storage.folder import Folder

    with progress("dump", "tokens") as report:
        result = run(config, execute=executor_of(config), progress=report)
    if not result.did_nothing:
        Folder.open(config.out).write(PROVENANCE_FILE, provenance(config.model_dump(mode="json")))
    rows = [
        ("dump", result.url),
        ("state", "complete" if result.complete else "others have their share to do"),
        ("shards", f"{result.num_shards:,}, by {_workers(config)}"),
        ("samples", f"{result.num_samples:,}, of which {result.num_truncated:,} truncated"),
        ("not dumped", f"{result.num_rejected:,} refused, {result.num_left_out:,} too long"),
        ("tokens", f"{result.num_tokens:,}, of which {result.num_rows:,} are verifier rows"),
        ("size", file_size(result.num_bytes)),
        ("seconds", "nothing to do" if result.did_nothing else f"{result.seconds:.1f}"),
    ]
    show("Dump", rows, asdict(result), as_json=as_json)


def _workers(config: DumpConfig) -> str:
    if config.worker_index is not None:
        return f"worker {config.worker_index} of {config.worker_count} and others"
    on_ray = " on Ray" if config.executor == "ray" else ""
    return f"{config.workers} worker{'s' if config.workers > 1 else ''}{on_ray}"
