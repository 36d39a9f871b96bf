"""The head to head as Markdown: tau of each side, by replay and by the engine, and ratios."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean

from scripts.bench.table import table
from scripts.quality.cell import read_trained
from scripts.quality.engine_side import read_served
from scripts.quality.judge import MODES, Mode
from scripts.quality.peer_cells import PeerCell, Side, best_swept
from scripts.quality.study import spread

Taus = dict[Side, dict[int, float]]
"""By side and seed."""

HEADER = (
    "target, K, D", "decoding", "by", "seeds", "speculators", "its best of the sweep", "ours",
    "ours, same time", "ours / theirs", "same time / theirs", "ours / swept", "same time / swept",
)  # fmt: skip
COST_HEADER = ("target, K, D", "side", "steps", "tokens", "CPU s of training")


def print_tables(cells: Sequence[PeerCell], folder: Callable[[PeerCell], Path]) -> None:
    """Of the cells that are done."""
    groups: dict[str, list[PeerCell]] = defaultdict(list)
    for cell in cells:
        groups[cell.group].append(cell)
    table(HEADER, (row for name in groups for row in _rows(name, groups[name], folder)))
    table(COST_HEADER, _costs(cells, folder))


def _rows(
    group: str, cells: Sequence[PeerCell], folder: Callable[[PeerCell], Path]
) -> Iterator[tuple[str, ...]]:
    choose, replayed, served = _taus(cells, folder)
    if not choose:
        return
    swept = best_swept({side: mean(taus.values()) for side, taus in choose.items()})
    for mode, name in MODES.items():
        for by, taus in (("replay", replayed[mode]), ("vLLM", served[mode])):
            if taus.get("peer"):
                yield group, name, by, str(len(taus["peer"])), *compared(taus, swept)


def _taus(
    cells: Sequence[PeerCell], folder: Callable[[PeerCell], Path]
) -> tuple[Taus, dict[Mode, Taus], dict[Mode, Taus]]:
    """At temperature 1 on the half to choose by; replayed and served on the other one."""
    choose: Taus = defaultdict(dict)
    replayed: dict[Mode, Taus] = {mode: defaultdict(dict) for mode in MODES}
    served: dict[Mode, Taus] = {mode: defaultdict(dict) for mode in MODES}
    for cell in cells:
        if (trained := read_trained(folder(cell))) is None:
            continue
        in_engine = read_served(folder(cell))
        if not cell.is_ours:
            choose[cell.side][cell.seed] = trained.judged.tau("temperature_1", "choose")
        for mode in MODES:
            replayed[mode][cell.side][cell.seed] = trained.judged.tau(mode, "report")
            if in_engine is not None:
                served[mode][cell.side][cell.seed] = in_engine.tau[mode]
    return choose, replayed, served


def compared(taus: Taus, swept: Side) -> tuple[str, ...]:
    """tau of the four sides, and the ratios of ours to theirs, of the seeds that both have."""
    sides: tuple[Side, ...] = ("peer", swept, "ours", "ours-time")
    means = [spread(list(taus.get(side, {}).values()), "") for side in sides]
    pairs: tuple[tuple[Side, Side], ...] = (
        ("ours", "peer"), ("ours-time", "peer"), ("ours", swept), ("ours-time", swept),
    )  # fmt: skip
    ratios = []
    for ours, theirs in pairs:
        a, b = taus.get(ours, {}), taus.get(theirs, {})
        ratios.append(spread([a[seed] / b[seed] for seed in sorted(a.keys() & b.keys())], ""))
    means[1] = f"{means[1]} ({swept})" if means[1] != "-" else "-"
    return *means, *ratios


def _costs(
    cells: Sequence[PeerCell], folder: Callable[[PeerCell], Path]
) -> Iterator[tuple[str, ...]]:
    for cell in cells:
        if cell.seed == 0 and (trained := read_trained(folder(cell))) is not None:
            counts = f"{trained.steps:,}", f"{trained.num_tokens:,}", f"{trained.cpu_seconds:.0f}"
            yield cell.group, cell.side, *counts
