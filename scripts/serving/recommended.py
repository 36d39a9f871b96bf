"""Is the recommended number of draft tokens the measured best? Of two exports of one drafter.

    python -m scripts.serving.recommended EXPORT_1 EXPORT_2

Each one's best number, by costs fitted to its own step times and tokens of the replay, is held
against the speeds that the other one measured; 0 is to draft nothing while the drafter is loaded.
"""

import json
from pathlib import Path

import click

from specpipe.schemas.records.artifact import VALIDATION_FILE
from specpipe.schemas.speedup import Recommendation

ALLOWED = 0.97


def read(folder: Path) -> Recommendation:
    found = json.loads((folder / VALIDATION_FILE).read_text("utf-8"))["recommendation"]
    return Recommendation.model_validate(found)


@click.command()
@click.argument("folders", nargs=2, type=click.Path(exists=True, path_type=Path))
def main(folders: tuple[Path, Path]) -> None:
    """Print a table of both, and whether each recommendation holds in the other."""
    first, second = map(read, folders)
    counts = sorted(first.speedups[0].measured)
    header = ["run", "batch size", "", "0", *map(str, counts), "best", "measured by the other"]
    click.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for number, (ours, others) in enumerate(((first, second), (second, first)), start=1):
        for one, other in zip(ours.speedups, others.speedups, strict=True):
            speeds = {0: 1 / other.cost.idle} | other.measured
            share = speeds[one.best] / max(speeds.values())
            verdict = f"{share:.1%} of the best: {'holds' if share >= ALLOWED else 'DOES NOT HOLD'}"
            expected = ["", *(f"{one.expected[count - 1]:.2f}" for count in counts)]
            measured = [f"{1 / one.cost.idle:.2f}", *(f"{one.measured[n]:.2f}" for n in counts)]
            start = f"| {number} | {one.cost.batch_size} |"
            click.echo(f"{start} expected | {' | '.join(expected)} | {one.best} | |")
            click.echo(f"{start} measured | {' | '.join(measured)} | | {verdict} |")


if __name__ == "__main__":
    main()
