"""The study of the defaults: trains every cell once, and tells tau beside that of the defaults."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

import click

from scripts.bench.table import heading, table
from scripts.quality.cell import Trained, of_drafter, read_trained, train_ours, write_trained
from scripts.quality.judge import HALVES, JUDGED_BY, Half
from scripts.quality.matrix import DEFAULT, EAGLE3, StudyCell

HEADER = (
    "choice", "seeds", "tau, temperature 1", "to the default", "tau, greedy", "to the default",
    "CPU s",
)  # fmt: skip

Found = dict[StudyCell, Trained]


def train(out: Path, cells: Iterable[StudyCell]) -> None:
    """Those that are not done."""
    for cell in cells:
        folder = out / "study" / cell.name
        if read_trained(folder) is None:
            settings, halves = cell.settings, HALVES
            if cell.drafter != EAGLE3:  # nothing is chosen by it: it is only reported
                settings = settings | of_drafter(out, cell.material, cell.drafter)
                halves = ("report",)
            trained = train_ours(out, folder, cell.material, settings, halves)
            write_trained(folder, trained)
            taus = ", ".join(f"{trained.judged.tau(mode, halves[0]):.3f}" for mode in JUDGED_BY)
            click.echo(f"{cell.name}: {taus}", err=True)


def print_tables(out: Path, cells: Sequence[StudyCell], half: Half) -> None:
    """A table for each target and coordinate, of the cells that are done; `half` of the prompts."""
    found = {
        cell: trained
        for cell in cells
        if (trained := read_trained(out / "study" / cell.name)) is not None
    }
    for material in dict.fromkeys(cell.material for cell in found):
        of_material = {cell: one for cell, one in found.items() if cell.material == material}
        default = _by_seed(of_material, DEFAULT, DEFAULT)
        for coordinate in dict.fromkeys(cell.coordinate for cell in of_material):
            heading(f"{material}: {coordinate}")
            table(HEADER, _rows(of_material, coordinate, default, half))


def _rows(
    found: Found, coordinate: str, default: dict[int, Trained], half: Half
) -> Iterator[tuple[str, ...]]:
    for choice in dict.fromkeys(cell.choice for cell in found if cell.coordinate == coordinate):
        runs = _by_seed(found, coordinate, choice)
        row = [choice, str(len(runs))]
        for mode in JUDGED_BY:
            ours = {seed: one.judged.tau(mode, half) for seed, one in runs.items()}
            theirs = {seed: one.judged.tau(mode, half) for seed, one in default.items()}
            row += [spread(list(ours.values()), ""), gains(ours, theirs)]
        yield *row, f"{mean(one.cpu_seconds for one in runs.values()):.0f}"


def gains(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Percent by which ours is larger, of the seeds that both have."""
    both = sorted(ours.keys() & theirs.keys())
    return spread([100 * (ours[seed] / theirs[seed] - 1) for seed in both], "+")


def spread(values: Sequence[float], sign: str) -> str:
    """The mean, and the standard deviation of several; with a sign, in percent."""
    if not values:
        return "-"
    digits, unit = (2, " %") if sign else (3, "")
    middle = f"{mean(values):{sign}.{digits}f}"
    around = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return middle + around + unit


def _by_seed(found: Found, coordinate: str, choice: str) -> dict[int, Trained]:
    return {
        cell.seed: trained
        for cell, trained in found.items()
        if (cell.coordinate, cell.choice) == (coordinate, choice)
    }
