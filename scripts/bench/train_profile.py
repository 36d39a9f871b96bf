"""Part d: where our steps' time goes, and how far they are from their matrix products alone."""

from collections.abc import Sequence
from statistics import median

from scripts.bench.paced import Values
from scripts.bench.table import heading, note, table, verdict
from scripts.bench.timing import over, with_spread
from scripts.bench.train_sides import Setup, ours
from scripts.bench.train_speed import LOSSES
from scripts.bench.train_watch import KINDS

TARGET = 1.5


def bench(
    setup: Setup, heads: Sequence[int], threads: Sequence[int], steps: int, repeats: int
) -> None:
    heading("d. Where the time goes, and the floor of matrix products")
    note(
        "Our trainings of part a. Products alone: every matrix product of a step (but what"
        " attention kernels multiply inside) again, with its shapes, strides and threads, and"
        " nothing else."
        f" {repeats} rounds of {steps} steps and of the products, in turn; median (least to most)."
    )
    floors: list[Sequence[str]] = []
    kinds: list[Sequence[str]] = []
    fits = True
    for num_heads in heads:
        for num_threads in threads:
            for loss in LOSSES:
                of_this = setup.at(num_heads=num_heads, threads=num_threads)
                taken, alone, profiled = _look(of_this, loss, steps, repeats)
                seconds = [answer["seconds"] / steps for answer in taken]
                floor = [answer["floor"] for answer in alone]
                ratios = over(seconds, floor)
                cpu = over(
                    [answer["cpu_seconds"] / steps for answer in taken],
                    [answer["cpu_floor"] for answer in alone],
                )
                if loss == "kl":
                    fits &= median(ratios) <= TARGET
                flops = alone[0]["flops"]
                named = (str(num_heads), str(num_threads), loss)
                floors.append(
                    (
                        *named,
                        with_spread(seconds, 3),
                        with_spread(floor, 3),
                        f"**{with_spread(ratios)}**",
                        with_spread(cpu),
                        f"{flops / 1e9:.4g}",
                        f"{flops / 1e9 / median(floor):.0f}",
                    )
                )
                kinds.append((*named, *_shares(profiled)))
    table(
        (
            "K",
            "threads",
            "loss",
            "s/step",
            "products alone, s",
            "step / products",
            "step / products, CPU",
            "GFLOP/step",
            "GFLOP/s of the products",
        ),
        floors,
    )
    note(verdict(f"a step with kl within {TARGET} of its products alone", fits))
    note("Percent of the step's time, by torch's profiler:")
    table(
        ("K", "threads", "loss", *KINDS, "waiting for data", "Python and what is not an operator"),
        kinds,
    )


def _look(
    setup: Setup, loss: str, steps: int, repeats: int
) -> tuple[list[Values], list[Values], Values]:
    with ours(setup, loss) as side:
        side.ask(steps=1)
        taken, alone = [], []
        for _ in range(repeats):
            taken.append(side.ask(steps=steps))
            alone.append(side.ask(steps=1, watch="products"))
        return taken, alone, side.ask(steps=steps, watch="profile", vocab=setup.draft_vocab)


def _shares(profiled: Values) -> list[str]:
    whole = profiled["seconds"]
    parts = [profiled["kinds"][kind] for kind in KINDS]
    rest = max(0.0, whole - sum(parts) - profiled["data_wait"])
    return [f"{100 * part / whole:.1f}" for part in (*parts, profiled["data_wait"], rest)]
