"""Part e: training at the shapes of an 8B target on a GPU, beside speculators on the same card."""

import time
from collections.abc import Sequence
from statistics import median

import torch

from scripts.bench.paced import Paced
from scripts.bench.table import heading, note, table, verdict
from scripts.bench.timing import with_spread
from scripts.bench.train_material import TargetShape
from scripts.bench.train_sides import Setup, ours, theirs
from scripts.bench.train_speed import LOSSES

LLAMA_8B = TargetShape(hidden=4096, vocab=128_256, intermediate=14_336, heads=32, kv_heads=8)
DRAFT_VOCAB, NUM_HEADS, PACK_TOKENS = 32_000, 7, 8192
TARGET_OF_PEAK = 0.45
TARGET_GIB = 16

_SQUARE = 8192
_WORKERS = 4
"""Processes that read for the other side; ours reads on threads of its own."""


def bench(setup: Setup, python: str | None, steps: int, repeats: int) -> None:
    heading("e. On a GPU, at the shapes of an 8B target")
    peak_flops = _peak_flops()
    note(
        f"{torch.cuda.get_device_name(0)}. Target: {setup.shape.describe()}, of"
        f" {setup.shape.layers} layers and random weights: training does not see more of a target"
        f" than its head and its states. D = {setup.draft_vocab:,}, K = {setup.num_heads}, packs of"
        f" {setup.pack_tokens:,} tokens, half of them supervised; bfloat16 with float32 weights."
        " theirs: with its fused losses, flex attention, torch.compile and kl, where it trains in"
        " bfloat16. Peak: of the card's memory, as torch allocated it. Matrix peak:"
        f" {peak_flops / 1e12:.0f} TFLOP/s, a bfloat16 product of {_SQUARE} squared measured just"
        f" before. {repeats} rounds of {steps} steps of each side; median (least to most)."
    )
    rows: list[Sequence[str]] = []
    for loss in LOSSES:
        with ours(setup, loss) as side:
            rows.append(_row(f"ours, {loss}", side, setup, steps, repeats, peak_flops))
    with ours(setup, "kl", activation_checkpointing=True, embedding_on_cpu=True) as side:
        name = "ours, kl, activations checkpointed, embedding on the CPU"
        small = _row(name, side, setup, steps, repeats, peak_flops)
    rows.append(small)
    if python is not None:
        try:
            with theirs(setup, python, _WORKERS) as side:
                rows.append(_row("theirs, kl", side, setup, steps, repeats, None))
        except RuntimeError as error:
            note(f"theirs does not train here: {' '.join(str(error).split())[-600:]}")
    table(("side", "tokens/s", "peak, GiB", "fraction of the matrix peak"), rows)
    best = max(float(row[3].split()[0]) for row in rows if row[3] != "-")
    note(verdict(f"{TARGET_OF_PEAK:.0%} of the matrix peak", best >= TARGET_OF_PEAK))
    note(verdict(f"trains under {TARGET_GIB} GiB", float(small[2]) < TARGET_GIB))


def _row(
    name: str, side: Paced, setup: Setup, steps: int, repeats: int, peak_flops: float | None
) -> tuple[str, str, str, str]:
    side.ask(steps=steps)  # kernels are compiled
    answers = [side.ask(steps=steps) for _ in range(repeats)]
    seconds = [answer["seconds"] / steps for answer in answers]
    fraction = "-"
    if peak_flops is not None:
        flops = side.ask(steps=1, watch="products")["flops"]
        fraction = with_spread([flops / s / peak_flops for s in seconds])
    peak_gib = max(answer["device_peak"] for answer in answers) / 2**30
    speed = with_spread([setup.pack_tokens / s for s in seconds], 0)
    return name, speed, f"{peak_gib:.2f}", fraction


def _peak_flops() -> float:
    """Of a large product in bfloat16, per second."""
    a, b = (torch.randn(_SQUARE, _SQUARE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    took = []
    for _ in range(20):
        torch.cuda.synchronize()
        began = time.perf_counter()
        torch.mm(a, b)
        torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    del a, b
    torch.cuda.empty_cache()
    return 2 * _SQUARE**3 / median(took[5:])
