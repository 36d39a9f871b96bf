"""The head to head: every cell is trained, judged and served once, and then told in a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from scripts.commands import fits
from scripts.material import Material
from scripts.quality.cell import (
    Trained,
    artifact_of,
    dump_of,
    judged,
    read_trained,
    train_ours,
    write_trained,
)
from scripts.quality.engine_side import read_served, serve
from scripts.quality.judge import Mode
from scripts.quality.peer_cells import (
    ON_OUR_LAYERS,
    SWEPT,
    PeerCell,
    Side,
    pack_tokens,
    peer_cells,
)
from scripts.quality.peer_input import PeerInput, write
from scripts.quality.peer_side import train_peer
from specpipe.schemas.drafters.base import eagle_layers, undeclared_eagle_layers
from specpipe.schemas.errors import SpecpipeError
from specpipe.stages.target.files.identity import read_config


@dataclass(frozen=True)
class HeadToHead:
    """Where the cells lie, and what they have in common."""

    out: Path
    """With the dumps; the cells are in `peers/`."""
    materials: Sequence[Material]
    python: str
    """Interpreter of the peer's environment."""
    epochs: int
    """Passes over the samples that are trained on, the same of both sides at equal data."""

    def folder(self, cell: PeerCell) -> Path:
        return self.out / "peers" / cell.name

    def cells(self, only: str) -> Iterator[PeerCell]:
        """Those whose name fits the pattern, in the order of how much they say."""
        sizes = {m.name: read_config(m.target)["vocab_size"] for m in self.materials}
        for cell in peer_cells(sizes):
            usual, own = (layers_of(side, self._target(cell)) for side in ("peer", cell.side))
            is_twin = cell.side == ON_OUR_LAYERS and own == usual
            if fits(cell.name, only) and not is_twin:
                yield cell

    def run(self, cells: Sequence[PeerCell], *, to_serve: bool) -> None:
        """Train these, one after the other; then serve them."""
        for cell in cells:
            self.train(cell)
        for cell in cells if to_serve else ():
            self.serve(cell)

    def train(self, cell: PeerCell) -> Trained:
        """The cell's result, from its file where there is one."""
        folder = self.folder(cell)
        if (done := read_trained(folder)) is not None:
            return done
        if cell.is_ours:
            settings = cell.settings(self._epochs(cell), self._pack(cell))
            trained = train_ours(self.out, folder, cell.material, settings)
        else:
            given = self._given(cell)
            settings = cell.settings(self.epochs, self._pack(cell))
            counted = train_peer(folder, self._target(cell), given, self.python, settings)
            heads = {"num_heads": cell.num_heads}
            found = judged(self.out, artifact_of(folder), cell.material, heads)
            trained = Trained(**counted.model_dump(), judged=found)
        write_trained(folder, trained)
        taus = ", ".join(f"{mode} {trained.judged.tau(mode, 'report'):.3f}" for mode in _SHOWN)
        click.echo(f"{cell.name}: {trained.cpu_seconds:.0f} CPU s, {taus}", err=True)
        return trained

    def serve(self, cell: PeerCell) -> None:
        """Raises nothing for an engine that fails: other cells go on."""
        folder = self.folder(cell)
        if read_trained(folder) is None or read_served(folder) is not None:
            return
        held_out = dump_of(self.out, cell.material, "held_out")
        try:
            served = serve(folder, self._target(cell), held_out, cell.num_heads, cell.seed)
        except SpecpipeError as error:
            click.echo(f"{cell.name}: not served: {error}", err=True)
        else:
            click.echo(f"{cell.name}: served, {served.tau}", err=True)

    def _pack(self, cell: PeerCell) -> int:
        # The same texts on any layers: those that the peer trains on are written anyway.
        return pack_tokens(self.epochs * self._given(cell.at("peer")).num_tokens)

    def _given(self, cell: PeerCell) -> PeerInput:
        """The training dump as the peer's files, with the layers of this cell."""
        layers = layers_of(cell.side, self._target(cell))
        folder = self.out / f"peer-{cell.material}-{'-'.join(map(str, layers))}"
        return write(dump_of(self.out, cell.material, "train"), folder, layers)

    def _target(self, cell: PeerCell) -> Path:
        return next(m.target for m in self.materials if m.name == cell.material)

    def _epochs(self, cell: PeerCell) -> int:
        """Of `ours-time`: as many as the peer's seconds are enough for."""
        if cell.side == "ours":
            return self.epochs
        theirs, ours = (self.train(cell.at(side)).cpu_seconds for side in ("peer", "ours"))
        return max(self.epochs, int(self.epochs * theirs / ours))


_SHOWN: tuple[Mode, ...] = ("temperature_1", "greedy")


def layers_of(side: Side, target: Path) -> tuple[int, ...]:
    """The auxiliary layers that a side trains on: its own default, but for one side."""
    num_layers = read_config(target)["num_hidden_layers"]
    is_peers = side in SWEPT and side != ON_OUR_LAYERS
    return (undeclared_eagle_layers if is_peers else eagle_layers)(num_layers)


def layers_of_both(target: Path) -> str:
    """For `specpipe dump --layers`."""
    both = {*layers_of("ours", target), *layers_of("peer", target)}
    return ",".join(map(str, sorted(both)))
