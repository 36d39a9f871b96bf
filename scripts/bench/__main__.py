"""Speed, size and memory of dumps, as ratios of things measured side by side in one run.

Prints Markdown (docs/benchmarks.md holds a run's). Times mean something on a quiet machine only;
sizes, counts and peaks of memory on any.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import click
import torch

from scripts.bench import dump_speed, layout, machine, memory, reader, s3_training, writer
from scripts.bench.frame import chosen_parts, working_folder
from scripts.bench.material import ShardSize

PARTS = "abcdef"
_MOST_RUNS = 3
"""Of training on each side, which take minutes."""

Size = click.IntRange(min=1)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--parts", default=",".join(PARTS), help="What to measure; letters with commas.")
@click.option("--quick", is_flag=True, help="Toy sizes: whether it runs, not how fast.")
@click.option("--repeats", type=Size, default=5, help="Rounds that are counted.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="Folder for files; default: a temporary one."
)
@click.option("--hidden", type=Size, default=512, help="a: hidden size of the target.")
@click.option("--layers", type=Size, default=8, help="a: its layers.")
@click.option("--vocab", type=Size, default=32_000, help="a: its vocabulary.")
@click.option("--tokens", type=Size, help="a: default: 16384 on a CPU, 524288 on a GPU.")
@click.option("--engine", default="{}", help="a: options of the vLLM engine, as JSON.")
@click.option("--processes", type=Size, default=2, help="a: processes of each side, in turn.")
@click.option("--state-hidden", type=Size, default=4096, help="b, c, e: hidden size of states.")
@click.option("--shard-tokens", type=Size, default=8192, help="b, c, e: tokens of a shard.")
@click.option("--sample-tokens", type=Size, default=512, help="b, c, e: tokens of a sample.")
@click.option("--shards", type=Size, default=3, help="c: shards that are read.")
@click.option("--random-samples", type=Size, default=8, help="c: samples read at random.")
@click.option("--conversations", type=Size, default=500, help="d, f: of sample_data/train.")
@click.option("--turns", type=Size, default=4, help="d: turns of the multi-turn variant.")
@click.option("--memory-mib", nargs=2, type=Size, default=(128, 512), help="e: two settings.")
@click.option("--epochs", type=Size, default=2, help="f: epochs of each training run.")
@click.option("--prefetch-mib", type=Size, default=4096, help="f: as that of train.")
def main(parts: str, quick: bool, work: Path | None, **options: Any) -> None:
    chosen = chosen_parts(parts, PARTS)
    if quick:
        options |= _QUICK
    with working_folder(work) as folder:
        print("# Speed and size of dumps\n\nscripts/bench_dump" + " --quick" * quick + "\n")
        machine.describe(folder)
        for part in chosen:
            room = folder / part
            room.mkdir()
            _run(part, room, options)
            shutil.rmtree(room)


_QUICK: dict[str, Any] = {
    "repeats": 1,
    "hidden": 128,
    "layers": 4,
    "vocab": 500,
    "tokens": 2048,
    "processes": 1,
    "state_hidden": 64,
    "shard_tokens": 2048,
    "sample_tokens": 64,
    "shards": 2,
    "random_samples": 4,
    "conversations": 12,
    "turns": 3,
    "memory_mib": (16, 32),
    "epochs": 1,
}


def _run(part: str, work: Path, options: dict[str, Any]) -> None:
    repeats = options["repeats"]
    size = ShardSize(options["state_hidden"], options["shard_tokens"], options["sample_tokens"])
    match part:
        case "a":
            shape = {name: options[name] for name in ("hidden", "layers", "vocab")}
            tokens = options["tokens"] or (524_288 if torch.cuda.is_available() else 16_384)
            engine = json.loads(options["engine"])
            dump_speed.bench(work, shape, tokens, engine, repeats, options["processes"])
        case "b":
            writer.bench(work, size, repeats)
        case "c":
            reader.bench(work, size, options["shards"], repeats, options["random_samples"])
        case "d":
            layout.bench(work, options["conversations"], options["turns"])
        case "e":
            memory.bench(work, size, options["memory_mib"])
        case "f":
            runs = min(repeats, _MOST_RUNS)
            s3_training.bench(
                work, options["conversations"], options["epochs"], options["prefetch_mib"], runs
            )


if __name__ == "__main__":
    main()
