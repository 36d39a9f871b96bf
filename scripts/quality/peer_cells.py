"""The cells of the head to head: targets, numbers of draft tokens, vocabularies, sides, seeds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from scripts.quality.cell import Settings

Side = Literal[
    "ours", "ours-time", "peer", "peer-muon", "peer-muon-layers", "peer-muon-high", "peer-adamw"
]

_MUON: Settings = {"optimizer": "muon", "lr": 7.5e-3}

SWEPT: dict[Side, Settings] = {
    "peer": {},
    "peer-muon": _MUON,
    "peer-muon-layers": _MUON,
    "peer-muon-high": _MUON | {"lr": 1.5e-2},
    "peer-adamw": {"optimizer": "adamw", "lr": 4e-3},
}
"""The peer's settings: its defaults, and the best of its two optimisers as we know them."""

ON_OUR_LAYERS: Side = "peer-muon-layers"
"""The side of the peer's that is given the auxiliary layers of our default, not of its own."""

NUM_HEADS = (3, 5, 7)
SEEDS = (0, 1, 2)
PACK_TOKENS = (2048, 1024)
FEWEST_STEPS = 200


def pack_tokens(num_tokens: int) -> int:
    """Tokens of a step, of so many in all: the most with which there are some hundreds of steps.

    The peer's default of 8,192 makes some tens of them here, and on a CPU its attention holds a
    mask of the square of it.
    """
    enough = [size for size in PACK_TOKENS if num_tokens >= size * FEWEST_STEPS]
    return enough[0] if enough else PACK_TOKENS[-1]


@dataclass(frozen=True)
class PeerCell:
    """A training of one side."""

    material: str
    num_heads: int
    draft_vocab: int | None
    """D; None: the whole vocabulary."""
    side: Side
    seed: int

    @property
    def group(self) -> str:
        """What is compared with each other."""
        return f"{self.material}-K{self.num_heads}-D{self.draft_vocab or 'V'}"

    @property
    def name(self) -> str:
        return f"{self.group}-{self.side}-{self.seed}"

    @property
    def is_ours(self) -> bool:
        return self.side.startswith("ours")

    def at(self, side: Side) -> "PeerCell":
        return PeerCell(self.material, self.num_heads, self.draft_vocab, side, self.seed)

    def settings(self, epochs: int, pack: int) -> Settings:
        """Of `specpipe train`, or flags of the peer's, whose steps are of `pack` tokens."""
        vocab = self.draft_vocab
        if self.is_ours:
            ours: Settings = {"num_heads": self.num_heads, "num_epochs": epochs, "seed": self.seed}
            return ours | ({"draft_vocab_size": vocab} if vocab else {})
        theirs: Settings = {
            "ttt-steps": self.num_heads,
            "epochs": epochs,
            "total-seq-len": pack,
            "seed": self.seed,
        }
        return theirs | ({"draft-vocab-size": vocab} if vocab else {}) | SWEPT[self.side]


def peer_cells(vocab_sizes: dict[str, int]) -> Iterator[PeerCell]:
    """All of them, those that say most first; `vocab_sizes` is V by material."""
    sides: tuple[tuple[Side, ...], ...] = (
        ("peer", "ours", "ours-time"),
        ("peer-muon", "peer-muon-layers", "peer-muon-high", "peer-adamw"),
    )
    for seed in SEEDS:
        for num_heads in NUM_HEADS:
            for part in (False, True):
                for some in sides:
                    for material, vocab in vocab_sizes.items():
                        for side in some:
                            size = vocab // 2 if part else None
                            yield PeerCell(material, num_heads, size, side, seed)


def best_swept(tau: Mapping[Side, float]) -> Side:
    """The best of the peer's sides, by tau on the half of the text that is not reported."""
    return max((side for side in SWEPT if side in tau), key=lambda side: tau[side])
