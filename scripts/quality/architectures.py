"""The studies of architectures: drafters of each kind at equal steps and at equal time.

One training of a drafter serves every K: those that draft in one pass are trained for the largest,
chains for 7 at the most, and draft on. Nothing is chosen by tau, and only the half of the prompts
that is reported is replayed.
"""

from collections.abc import Iterator, Mapping, Sequence
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

STEPS = 200

_CHAIN: Settings = {"num_heads": 7}
_IN_ONE_PASS: Settings = {"num_heads": 15, "num_layers": 2}
"""Two layers of those that pay one pass for all drafts."""


@dataclass(frozen=True)
class Study:
    """Drafters that are compared."""

    drafters: Mapping[str, Settings]
    """What is set of each; all else is the trainer's default."""
    draft_tokens: tuple[int, ...]
    shares_layers: bool
    """All read the layers that the dump has; else each its own."""
    has_mtp: bool = False
    """The targets are of families that have MTP layers: the same functions, under other names."""


StudyName = Literal["blocks", "final-state"]
STUDIES: Mapping[StudyName, Study] = {
    "blocks": Study(
        {"eagle3": _CHAIN, **dict.fromkeys(("peagle", "dflash", "dspark"), _IN_ONE_PASS)},
        draft_tokens=(3, 7, 15),
        shares_layers=True,
    ),
    "final-state": Study(
        dict.fromkeys(("eagle3", "mtp", "eagle1", "medusa"), _CHAIN),
        draft_tokens=(3, 7),
        shares_layers=False,
        has_mtp=True,
    ),
}

Budget = Literal["steps", "time"]
BUDGETS: Mapping[Budget, str] = {"steps": "equal steps", "time": "equal time"}


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


def architecture_cells(
    study: Study, materials: Sequence[str], seeds: int
) -> Iterator[ArchitectureCell]:
    """All cells, seed by seed."""
    for seed in range(seeds):
        for budget in BUDGETS:
            for material in materials:
                for drafter in study.drafters:
                    yield ArchitectureCell(material, drafter, budget, seed)


@dataclass(frozen=True)
class Architectures:
    """Where the cells of a study lie, and what they have in common."""

    study: Study
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
        kind: Settings = {"drafter": cell.drafter}
        if self.study.shares_layers:
            kind = of_drafter(self.out, cell.material, cell.drafter)
        settings = self.study.drafters[cell.drafter] | kind | given
        counted = make_ours(self.out, folder, cell.material, settings)
        held_out, greedy = (
            dump_of(self.out, cell.material, text) for text in ("held_out", "greedy")
        )
        replayed = partial(judge, artifact_of(folder), held_out, greedy, halves=("report",))
        found = {number: replayed(number) for number in self.study.draft_tokens}
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
            for drafter in self.study.drafters
        }
        return round(self.num_steps * max(took.values()) / took[cell.drafter])


def print_tables(cells: Sequence[ArchitectureCell], of: Architectures) -> None:
    """A table for each target, of the cells that are done."""
    found = {cell: done for cell in cells if (done := of.read(cell)) is not None}
    header = (
        "decoding", "budget", "drafter", "seeds",
        *(f"tau, K = {k}" for k in of.study.draft_tokens), "steps", "CPU s",
    )  # fmt: skip
    for material in dict.fromkeys(cell.material for cell in found):
        heading(f"{material}: architectures")
        of_material = {cell: one for cell, one in found.items() if cell.material == material}
        table(header, _rows(of_material, of.study))


def _rows(found: Mapping[ArchitectureCell, Replayed], study: Study) -> Iterator[tuple[str, ...]]:
    for mode in JUDGED_BY:
        for budget, words in BUDGETS.items():
            for drafter in study.drafters:
                runs = [
                    one for cell, one in found.items()
                    if (cell.drafter, cell.budget) == (drafter, budget)
                ]  # fmt: skip
                if runs:
                    yield MODES[mode], words, drafter, str(len(runs)), *_figures(runs, mode)


def _figures(runs: Sequence[Replayed], mode: Mode) -> Iterator[str]:
    for number in runs[0].judged:
        yield spread([one.judged[number].tau(mode, "report") for one in runs], "")
    yield " ".join(dict.fromkeys(f"{one.steps:,}" for one in runs))
    yield f"{sum(one.cpu_seconds for one in runs) / len(runs):.0f}"
