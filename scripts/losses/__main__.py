"""Do LK losses beat KL, and which choices pay? Trains every drafter of the matrix and tells.

    python -m scripts.losses --out runs/losses [--code runs/code] [--max-steps 240]

Every step does nothing where its result lies there already, so that it may be ended and run again.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from scripts.commands import specpipe
from scripts.losses.matrix import Training, trainings
from scripts.losses.tables import print_tables, read_results
from scripts.material import Text, code_material, make_dumps, sample_material

TEXTS: tuple[Text, ...] = ("train", "held_out", "greedy")


def train(out: Path, training: Training) -> None:
    run, dump = out / training.name, out / f"dump-{training.material}"
    flags = [part for name, value in training.settings.items() for part in (f"--{name}", value)]
    log = out / f"{training.name}.log"
    specpipe(
        log, "train", "--dump", f"{dump}-train", "--eval-dump", f"{dump}-held_out",
        "--out", run, "--eval-tokens", 10**9, "--keep-checkpoints", 1, *flags,
    )  # fmt: skip
    if not (run / "greedy.json").exists():
        specpipe(
            log, "export", "--checkpoint", run, "--out", run / "artifact",
            "--dump", f"{dump}-greedy", "--validation", "replay",
        )  # fmt: skip
        replayed = json.loads((run / "artifact" / "validation.json").read_text("utf-8"))["replay"]
        (run / "greedy.json").write_text(json.dumps(replayed["artifact"]), encoding="utf-8")
    click.echo(f"{training.name} done", err=True)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/prove/losses"))
@click.option("--code", type=click.Path(path_type=Path), default=Path("runs/code"))
@click.option("--max-steps", default=240, show_default=True)
@click.option("--answers", default=2, show_default=True, help="Answers to each training prompt.")
@click.option("--processes", default=2, show_default=True, help="Trainings at the same time.")
@click.option("--tables-only", is_flag=True)
def main(
    out: Path, code: Path, max_steps: int, answers: int, processes: int, tables_only: bool
) -> None:
    """Train the matrix and print its tables."""
    out.mkdir(parents=True, exist_ok=True)
    materials = [sample_material("gsm8k"), code_material("code", code)]
    if not tables_only:
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(lambda material: make_dumps(out, material, answers, TEXTS), materials))
            list(pool.map(lambda training: train(out, training), trainings(materials, max_steps)))
    print_tables(read_results(out), [material.name for material in materials])


if __name__ == "__main__":
    main()
