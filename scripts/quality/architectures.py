"""The study of architectures: drafters of each kind at equal steps and at equal time.

One training of a drafter serves every K: those that draft in one pass are trained for the largest,
EAGLE-3 for as many as it takes, and its chain drafts on. All read the same layers, those that the
dump has. Nothing is chosen by tau, and only the half of the prompts that is reported is replayed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import click

from scripts.bench.table import heading, table
from scripts.quality.cell import (
    Counted,
    Settings,
    artifact_of,
    dump_of,
    make_ours,
    of_drafter,
    read_result,
    write_trained,
)
from scripts.quality.judge import JUDGED_BY, MODES, Judged, Mode, judge
from scripts.quality.study import spread

NUM_DRAFT_TOKENS = (3, 7, 15)
STEPS = 200

_IN_ONE_PASS: Settings = {"num_heads": max(NUM_DRAFT_TOKENS), "num_layers": 2}

DRAFTERS: Mapping[str, Settings] = {
    "eagle3": {"num_heads": 7},
    "peagle": _IN_ONE_PASS,
    "dflash": _IN_ONE_PASS,
    "dspark": _IN_ONE_PASS,
}
"""What is set of each; all else is the trainer's default. Two layers of those that pay one pass for
all drafts."""

Budget = Literal["steps", "time"]
BUDGETS: Mapping[Budget, str] = {"steps": "equal steps", "time": "equal time"}

HEADER = (
    "decoding", "budget", "drafter", "seeds", *(f"tau, K = {k}" for k in NUM_DRAFT_TOKENS),
    "steps", "CPU s",
)  # fmt: skip


class Replayed(Counted):
    """What a training left: by number of draft tokens."""

    judged: dict[int, Judged]


@dataclass(frozen=True)
class ArchitectureCell:
    """One training of one drafter."""

    material: str
    drafter: str
    budget: Budget
    seed: int

    @property
    def name(self) -> str:
        return f"{self.material}-{self.drafter}-{self.budget}-{self.seed}"


def architecture_cells(materials: Sequence[str], seeds: int) -> Iterator[ArchitectureCell]:
    """All cells, seed by seed."""
    for seed in range(seeds):
        for budget in BUDGETS:
            for material in materials:
                for drafter in DRAFTERS:
                    yield ArchitectureCell(material, drafter, budget, seed)


@dataclass(frozen=True)
class Architectures:
    """Where the cells lie, and what they have in common."""

    out: Path
    """With the dumps; the cells are in `architectures/`."""
    num_steps: int
    """At equal steps."""

    def read(self, cell: ArchitectureCell) -> Replayed | None:
        """None where the cell is not done."""
        return read_result(self._folder(cell), Replayed)

    def train(self, cell: ArchitectureCell) -> Replayed:
        """The cell's result, from its file where there is one."""
        if (done := self.read(cell)) is not None:
            return done
        folder = self._folder(cell)
        given = {"max_steps": self._steps(cell), "seed": cell.seed}
        kind = of_drafter(self.out, cell.material, cell.drafter)
        settings = DRAFTERS[cell.drafter] | kind | given
        counted = make_ours(self.out, folder, cell.material, settings)
        held_out, greedy = (
            dump_of(self.out, cell.material, text) for text in ("held_out", "greedy")
        )
        replayed = partial(judge, artifact_of(folder), held_out, greedy, halves=("report",))
        found = {number: replayed(number) for number in NUM_DRAFT_TOKENS}
        trained = Replayed(**counted.model_dump(), judged=found)
        write_trained(folder, trained)
        taus = ", ".join(f"{one.tau('temperature_1', 'report'):.3f}" for one in found.values())
        click.echo(f"{cell.name}: {trained.cpu_seconds:.0f} CPU s, {taus}", err=True)
        return trained

    def _folder(self, cell: ArchitectureCell) -> Path:
        return self.out / "architectures" / cell.name

    def _steps(self, cell: ArchitectureCell) -> int:
        """At equal time as many as the seconds of the slowest drafter's equal steps are for."""
        if cell.budget == "steps":
            return self.num_steps
        took = {
            drafter: self.train(replace(cell, drafter=drafter, budget="steps")).cpu_seconds
            for drafter in DRAFTERS
        }
        return round(self.num_steps * max(took.values()) / took[cell.drafter])


Read = Callable[[ArchitectureCell], Replayed | None]


def print_tables(cells: Sequence[ArchitectureCell], read: Read) -> None:
    """A table for each target, of the cells that are done."""
    found = {cell: done for cell in cells if (done := read(cell)) is not None}
    for material in dict.fromkeys(cell.material for cell in found):
        heading(f"{material}: architectures")
        of_material = {cell: one for cell, one in found.items() if cell.material == material}
        table(HEADER, _rows(of_material))


def _rows(found: Mapping[ArchitectureCell, Replayed]) -> Iterator[tuple[str, ...]]:
    for mode in JUDGED_BY:
        for budget, words in BUDGETS.items():
            for drafter in DRAFTERS:
                runs = [
                    one for cell, one in found.items()
                    if (cell.drafter, cell.budget) == (drafter, budget)
                ]  # fmt: skip
                if runs:
                    yield MODES[mode], words, drafter, str(len(runs)), *_figures(runs, mode)


def _figures(runs: Sequence[Replayed], mode: Mode) -> Iterator[str]:
    for number in NUM_DRAFT_TOKENS:
        yield spread([one.judged[number].tau(mode, "report") for one in runs], "")
    yield " ".join(dict.fromkeys(f"{one.steps:,}" for one in runs))
    yield f"{sum(one.cpu_seconds for one in runs) / len(runs):.0f}"
