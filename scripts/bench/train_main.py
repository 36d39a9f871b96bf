"""Speed and memory of training, as ratios of things measured side by side in one run.

The other side is vLLM's speculators 0.9.0, in an environment of its own that is made at first use
(runs/bench/speculators). Prints Markdown (docs/benchmarks.md holds a run's). Times mean something
on a quiet machine only; on a busy one, look at CPU seconds with one thread.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from scripts.bench import (
    machine,
    train_gpu,
    train_memory,
    train_profile,
    train_speed,
)
from scripts.bench.frame import chosen_parts, working_folder
from scripts.bench.table import note
from scripts.bench.train_environment import peer_python
from scripts.bench.train_material import TargetShape, Texts, make
from scripts.bench.train_sides import Setup

PARTS = "abcde"
_OF_LLAMA = {"intermediate": 3, "head": 64}
"""The intermediate size over H, and the size of a head."""

Size = click.IntRange(min=1)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--parts", default=",".join(PARTS), help="What to measure; letters with commas.")
@click.option("--quick", is_flag=True, help="Toy sizes: whether it runs, not how fast.")
@click.option("--alone", is_flag=True, help="Our side alone.")
@click.option("--repeats", type=Size, default=5, help="Rounds that are counted.")
@click.option("--steps", type=Size, default=3, help="Steps of a round.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="Folder for files; default: a temporary one."
)
@click.option(
    "--drafter",
    type=click.Choice(["eagle3", "peagle", "dflash", "mtp"]),
    default="eagle3",
    help="a, b: what both train; d: what we do.",
)
@click.option("--heads", type=Size, multiple=True, default=(3, 7), help="K; may be repeated.")
@click.option("--threads", type=Size, multiple=True, default=(1, 2), help="May be repeated.")
@click.option("--hidden", type=Size, default=256, help="a-d: H of the target and the drafter.")
@click.option("--vocab", type=Size, default=32_000, help="a, b, d: V, and D.")
@click.option("--large-vocab", type=Size, default=128_256, help="c: V; D is --vocab.")
@click.option("--pack-tokens", type=Size, default=2048, help="a-d: tokens of a step.")
@click.option("--sample-tokens", type=Size, default=512, help="Of each text; half supervised.")
def main(parts: str, quick: bool, alone: bool, work: Path | None, **options: Any) -> None:
    chosen = chosen_parts(parts, PARTS)
    if quick:
        options |= _QUICK
    with working_folder(work) as folder:
        print("# Speed and memory of training\n\nscripts/bench_train" + " --quick" * quick + "\n")
        machine.describe(folder)
        python = None if alone else peer_python()
        _run(chosen, folder, python, options)
        note(f"Load after (1 minute): {os.getloadavg()[0]:.2f}.")


_QUICK: dict[str, Any] = {
    "repeats": 1,
    "steps": 1,
    "heads": (2,),
    "threads": (1,),
    "hidden": 128,
    "vocab": 500,
    "large_vocab": 2000,
    "pack_tokens": 128,
    "sample_tokens": 32,
}


def _run(parts: list[str], folder: Path, python: str | None, options: dict[str, Any]) -> None:
    heads, threads = options["heads"], options["threads"]
    steps, repeats, pack = options["steps"], options["repeats"], options["pack_tokens"]
    # Theirs holds back a tenth of the texts: nine full packs are left.
    texts = Texts(10 * pack // options["sample_tokens"], options["sample_tokens"])
    if {*parts} & {*"abd"}:
        shape = _shape(options["hidden"], options["vocab"])
        if options["drafter"] == "mtp":
            shape = replace(shape, has_mtp=True, aux=(shape.layers,))
        setup = Setup(folder / "small", shape, heads[0], pack, threads[0], shape.vocab)
        drafting = setup.at(drafter=options["drafter"])
        make(setup.root, shape, texts, theirs=python is not None)
        if "a" in parts:
            train_speed.bench(drafting, heads, threads, python, steps, repeats)
        if "b" in parts:
            train_memory.bench(drafting, heads, (pack // 2, pack), python)
        if "d" in parts:
            train_profile.bench(drafting, heads, threads, steps, repeats)
    if "c" in parts:
        shape = _shape(options["hidden"], options["large_vocab"])
        setup = Setup(folder / "large", shape, heads[0], pack, threads[0], options["vocab"])
        make(setup.root, shape, texts, theirs=False)
        train_memory.bench_bound(setup, heads)
    if "e" in parts:
        _run_on_gpu(folder, python, steps, repeats)


def _run_on_gpu(folder: Path, python: str | None, steps: int, repeats: int) -> None:
    if not torch.cuda.is_available():
        note("Part e needs a GPU: left out.")
        return
    shape, pack = train_gpu.LLAMA_8B, train_gpu.PACK_TOKENS
    setup = Setup(
        folder / "8b", shape, train_gpu.NUM_HEADS, pack, os.cpu_count() or 1, train_gpu.DRAFT_VOCAB
    )
    make(setup.root, shape, Texts(4 * pack // 1024, 1024), theirs=python is not None)
    train_gpu.bench(setup, python, steps, repeats)


def _shape(hidden: int, vocab: int) -> TargetShape:
    heads = hidden // _OF_LLAMA["head"]
    intermediate = hidden * _OF_LLAMA["intermediate"]
    return TargetShape(hidden, vocab, intermediate, heads, max(1, heads // 2))


if __name__ == "__main__":
    main()
