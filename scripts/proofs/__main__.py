"""How often do the proofs of export cry wolf, and which damage do they find?

    python -m scripts.proofs --dump runs/prove/dump --held-out runs/prove/dump_held_out --out OUT

Honest and faulty runs are simulated, with the limits that there were before beside those of today;
drafters are real, of the sample target after 10 steps and after 160, and of a random target with a
vocabulary of 262,144 tokens. The dumps are those of sample_data (scripts/prove).
"""

from pathlib import Path

import click
import numpy as np
import torch

from scripts.commands import specpipe
from scripts.proofs import drafters, engines, texts
from scripts.proofs.table import show
from scripts.proofs.wide import wide_dump
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.stages.export.run import run as export
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.storage.dump import Dump


def train(out: Path, dump: Path, steps: int, *settings: object) -> Path:
    """The checkpoint of a drafter of three heads after so many steps."""
    run = out / f"{dump.name}-{steps}"
    specpipe(
        out / "proofs.log", "train", "--config", "scripts/papers.yaml", "--dump", dump,
        "--out", run, "--num-heads", 3,
        "--max-steps", steps, "--eval-every", steps, "--learning-rate", 2e-3,
        "--batch-tokens", 4096, *settings,
    )  # fmt: skip
    return resolve_checkpoint(run)


@click.command()
@click.option("--dump", type=click.Path(path_type=Path), required=True)
@click.option("--held-out", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/prove/proofs"))
@click.option("--runs", default=2000, show_default=True, help="Of each small simulated set.")
def main(dump: Path, held_out: Path, out: Path, runs: int) -> None:
    """Print the tables."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    held = ("--eval-dump", held_out, "--draft-vocab-size", 1024)
    young, old = (train(out, dump, steps, *held) for steps in (10, 160))
    of_sample = {"10 steps": young, "160 steps": old}
    wide = wide_dump(out)
    of_wide = {"10 steps, V = 262,144": train(out, wide, 10, "--eval-tokens", 500)}

    show(
        drafters.ROUNDING_HEADER,
        (
            row
            for paths, folder in ((of_sample, held_out), (of_wide, wide))
            for row in drafters.rounding_rows(paths, Dump.open(str(folder)), out, runs // 4, rng)
        ),
    )
    show(engines.HEADER, engines.rows(runs, rng))
    show(texts.HEADER, texts.rows(runs))
    show(texts.TIE_HEADER, texts.tie_rows(runs, rng))
    export(
        ExportConfig(
            checkpoint=str(old),
            out=str(out / "sound"),
            dump=str(held_out),
            validation=("structure",),
        )
    )
    sound = drafters.Sound(
        out / "sound" / "checkpoint", load_checkpoint(old), Dump.open(str(held_out))
    )
    show(drafters.DAMAGE_HEADER, drafters.damage_rows(sound, out, rng))
    for temperature in (0.8, 0.9, 0.95, 1.1):
        show(texts.HEADER, texts.rows(runs // 10, temperature))


if __name__ == "__main__":
    main()
