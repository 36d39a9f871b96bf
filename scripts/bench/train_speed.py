"""Part a: tokens per second of both sides, in turn."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median

from scripts.bench.paced import Paced, Values
from scripts.bench.table import heading, note, table, verdict
from scripts.bench.timing import over, rounds, with_spread
from scripts.bench.train_sides import Setup, ours, theirs

TARGET = 2.0
LOSSES = ("kl", "lk_hybrid")
"""Of ours; the other side has kl."""
OURS: Mapping[str, Mapping[str, str]] = {
    **{f"ours, {loss}": {"loss": loss} for loss in LOSSES},
    "ours, kl, AdamW": {"loss": "kl", "optimizer": "adamw"},
}
"""What is set of our sides; the other side has AdamW."""


def bench(
    setup: Setup,
    heads: Sequence[int],
    threads: Sequence[int],
    python: str | None,
    steps: int,
    repeats: int,
) -> None:
    heading("a. Tokens per second")
    note(
        f"Drafter {setup.drafter}. Target: {setup.shape.describe()}; D = {setup.draft_vocab:,}."
        " Packs of"
        f" {setup.pack_tokens:,} tokens, the same texts and states for both sides, half of the"
        " tokens supervised; float32, batches of one pack; theirs with AdamW, ours with Muon, its"
        " default, but where it says AdamW. A step is all that the side's own"
        " training loop does from one step to the next: data, step, metrics. theirs:"
        " speculators 0.9.0 by its own `train_epoch`, with SDPA and eager losses, as flex attention"
        " and its fused losses do not train on a CPU. CPU seconds are of all threads of the"
        f" process. {repeats} rounds of {steps} steps of each side in turn, after a round that is"
        " not counted; median (least to most). The ratio is taken in each round."
    )
    rows = []
    fits = True
    for num_heads in heads:
        for num_threads in threads:
            found = _alternate(
                setup.at(num_heads=num_heads, threads=num_threads), python, steps, repeats
            )
            num_tokens = steps * setup.pack_tokens
            peer = found.get("theirs")
            for side, answers in found.items():
                speeds = [num_tokens / answer["seconds"] for answer in answers]
                of_cpu = [num_tokens / answer["cpu_seconds"] for answer in answers]
                ratio = cpu_ratio = "-"
                if peer is not None and side != "theirs":
                    ratios = over([a["seconds"] for a in peer], [a["seconds"] for a in answers])
                    ratio = f"**{with_spread(ratios)}**"
                    cpu_ratio = with_spread(
                        over([a["cpu_seconds"] for a in peer], [a["cpu_seconds"] for a in answers])
                    )
                    if side == "ours, kl":
                        fits &= median(ratios) >= TARGET
                # Theirs counts the time between rounds as waiting.
                wait = (
                    "-"
                    if side == "theirs"
                    else f"{median(100 * a['data_wait'] / a['seconds'] for a in answers):.1f}"
                )
                rows.append(
                    (
                        str(num_heads),
                        str(num_threads),
                        side,
                        with_spread(speeds, 0),
                        ratio,
                        with_spread(of_cpu, 0),
                        cpu_ratio,
                        wait,
                        f"{answers[-1]['losses'][-1]:.3f}",
                    )
                )
    table(
        (
            "K",
            "threads",
            "side",
            "tokens/s",
            "ours / theirs",
            "tokens / CPU s",
            "ours / theirs, CPU",
            "waiting for data, %",
            "last loss",
        ),
        rows,
    )
    if python is not None:
        text = f"tokens/s with kl at least {TARGET:.0f} times theirs at every K and thread count"
        note(verdict(text, fits))


def _alternate(
    setup: Setup, python: str | None, steps: int, repeats: int
) -> dict[str, list[Values]]:
    with ExitStack() as running:
        sides = {
            name: running.enter_context(ours(setup, **settings)) for name, settings in OURS.items()
        }
        if python is not None:
            sides = {"theirs": running.enter_context(theirs(setup, python)), **sides}
        found: dict[str, list[Values]] = {name: [] for name in sides}

        def timed(name: str, side: Paced) -> float:
            answer = side.ask(steps=steps)
            _check_tokens(name, answer, steps * setup.pack_tokens)
            found[name].append(answer)
            seconds: float = answer["seconds"]
            return seconds

        rounds(repeats, *(lambda n=n, s=s: timed(n, s) for n, s in sides.items()))
        return {name: answers[1:] for name, answers in found.items()}


def _check_tokens(name: str, answer: Values, num_tokens: int) -> None:
    """Both sides must walk full packs; theirs counts a token less for each sample."""
    if not 0.95 * num_tokens <= answer["tokens"] <= num_tokens:
        raise RuntimeError(f"{name}: {answer['tokens']} tokens in place of {num_tokens}")
