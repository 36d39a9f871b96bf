"""Parts b and c: peak memory of both sides per token, and ours beside its formula."""

from collections.abc import Sequence

from scripts.bench.paced import Paced
from scripts.bench.table import heading, note, table, verdict
from scripts.bench.train_bound import bound_of
from scripts.bench.train_sides import Setup, ours, theirs

TARGET = 0.3
MIB = 2**20


def bench(setup: Setup, heads: Sequence[int], packs: tuple[int, int], python: str | None) -> None:
    heading("b. Peak memory per token")
    small, large = packs
    note(
        "The trainings of part a with kl, each in a process of its own that makes two steps."
        " Grown: peak resident memory over that before the first step, when everything is built."
        f" Per token: grown with packs of {large:,} tokens less grown with packs of {small:,}, over"
        " the difference in tokens; what does not grow with the batch drops out. In the first step,"
        " gradients and the optimiser's state come to be, on both sides."
    )
    rows = []
    fits = True
    for num_heads in heads:
        sides = {"ours": None} if python is None else {"theirs": python, "ours": None}
        per_token: dict[str, float] = {}
        grown: dict[str, float] = {}
        for side, interpreter in sides.items():
            at = {
                pack: _grown(setup.at(num_heads=num_heads, pack_tokens=pack), interpreter)
                for pack in packs
            }
            per_token[side] = (at[large] - at[small]) / (large - small)
            grown[side] = at[large]
            ratio = ratio_grown = "-"
            if side == "ours" and python is not None:
                share = per_token["ours"] / per_token["theirs"]
                fits &= share <= TARGET
                ratio = f"**{share:.3f}**"
                ratio_grown = f"{grown['ours'] / grown['theirs']:.3f}"
            rows.append(
                (
                    str(num_heads),
                    side,
                    f"{at[small] / MIB:.0f}",
                    f"{at[large] / MIB:.0f}",
                    ratio_grown,
                    f"{per_token[side] / 1024:.1f}",
                    ratio,
                )
            )
    table(
        (
            "K",
            "side",
            f"grown, MiB, {small:,} tokens",
            f"grown, MiB, {large:,} tokens",
            f"ours / theirs, {large:,} tokens",
            "KiB per token",
            "ours / theirs, per token",
        ),
        rows,
    )
    if python is not None:
        note(verdict(f"growth per token at most {TARGET} of theirs at every K", fits))


def bench_bound(setup: Setup, heads: Sequence[int]) -> None:
    heading("c. Peak memory beside its formula")
    note(
        f"Target: {setup.shape.describe()}; D = {setup.draft_vocab:,}, packs of"
        f" {setup.pack_tokens:,} tokens, half of them supervised. Measured: peak resident memory of"
        " two steps with lk_hybrid, over that of the process before the run began; the formula is"
        " in scripts/bench/train_bound.py and on this page."
    )
    rows = []
    fits = True
    for num_heads in heads:
        of_heads = setup.at(num_heads=num_heads)
        bound = bound_of(of_heads)
        with ours(of_heads, "lk_hybrid") as side:
            answer = side.ask(steps=2)
        measured = answer["peak"] - answer["start"]
        fits &= measured <= bound.total
        rows.append(
            (
                str(num_heads),
                *(f"{part / MIB:.0f}" for part in bound.parts.values()),
                f"**{bound.total / MIB:.0f}**",
                f"**{measured / MIB:.0f}**",
                f"{(answer['built_peak'] - answer['start']) / MIB:.0f}",
            )
        )
    names = bound_of(setup).parts
    table(("K", *(f"{n}, MiB" for n in names), "bound", "measured", "while it was built"), rows)
    note(verdict("the peak in training is under the formula", fits))


def _grown(setup: Setup, python: str | None) -> float:
    side: Paced = ours(setup, "kl") if python is None else theirs(setup, python)
    with side:
        answer = side.ask(steps=2)
    grown: float = answer["peak"] - answer["before"]
    return grown
