"""Is the recommended number of draft tokens the measured best? Of two exports of one drafter.

    python -m scripts.serving.recommended runs/prove/recommend-1 runs/prove/recommend-2

Each one's best number, by costs fitted to its own step times, is held against the speeds that the
other one measured; 0 is to decode without the drafter.
"""

import json
from pathlib import Path

import click

from specpipe.schemas.artifact import VALIDATION_FILE
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
    header = ["run", "batch size", "", *map(str, counts), "recommended", "measured by the other"]
    click.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for number, (ours, others) in enumerate(((first, second), (second, first)), start=1):
        for one, other in zip(ours.speedups, others.speedups, strict=True):
            size = str(one.cost.batch_size)
            speeds = {0: 1.0} | other.measured
            share = speeds[one.best] / max(speeds.values())
            verdict = f"{share:.1%} of the best: {'holds' if share >= ALLOWED else 'DOES NOT HOLD'}"
            expected = [f"{one.expected[count - 1]:.2f}" for count in counts]
            measured = [f"{one.measured[count]:.2f}" for count in counts]
            click.echo(f"| {number} | {size} | expected | {' | '.join(expected)} | {one.best} | |")
            click.echo(f"| {number} | {size} | measured | {' | '.join(measured)} | | {verdict} |")


if __name__ == "__main__":
    main()
