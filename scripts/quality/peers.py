"""The head to head: every cell is trained, judged and served once, and then told in a table."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from scripts.commands import fits
from scripts.material import Material
from scripts.quality import peer_input
from scripts.quality.cell import Trained, dump_of, read_trained, train_ours, write_trained
from scripts.quality.engine_side import read_served, serve
from scripts.quality.judge import Mode
from scripts.quality.peer_cells import PeerCell, pack_tokens, peer_cells
from scripts.quality.peer_side import train_peer
from specpipe.schemas.errors import SpecpipeError


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
        sizes = {material.name: _vocab_size(material.target) for material in self.materials}
        return (cell for cell in peer_cells(sizes) if fits(cell.name, only))

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
            settings, target = cell.settings(self.epochs, self._pack(cell)), self._target(cell)
            trained = train_peer(self.out, folder, cell.material, target, self.python, settings)
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
        given = peer_input.write(
            dump_of(self.out, cell.material, "train"), self.out / f"peer-{cell.material}"
        )
        return pack_tokens(self.epochs * given.num_tokens)

    def _target(self, cell: PeerCell) -> Path:
        return next(m.target for m in self.materials if m.name == cell.material)

    def _epochs(self, cell: PeerCell) -> int:
        """Of `ours-time`: as many as the peer's seconds are enough for."""
        if cell.side == "ours":
            return self.epochs
        theirs, ours = (self.train(cell.at(side)).cpu_seconds for side in ("peer", "ours"))
        return max(self.epochs, int(self.epochs * theirs / ours))


_SHOWN: tuple[Mode, ...] = ("temperature_1", "greedy")


def _vocab_size(target: Path) -> int:
    size = json.loads((target / "config.json").read_text("utf-8"))["vocab_size"]
    assert isinstance(size, int)
    return size
