"""Parts of a page: plain values, which the template escapes and turns into HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from specpipe.stages.report.chart import Figure

Piece = tuple[str, str]
"""(kind, text) of a piece of a drafted text; kinds: prompt, own, accepted, rejected."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell; with a share in [0, 1], a bar behind the figure."""

    text: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    header: Sequence[str]
    """Empty: a table of names and values."""
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    is_words: bool = False
    """Words, which stand on the left, not figures."""
    is_folded: bool = False
    """Shown when it is opened."""
    kind: Literal["table"] = "table"


@dataclass(frozen=True, slots=True)
class Figures:
    """Charts side by side, as far as there is room."""

    figures: Sequence[Figure]
    kind: Literal["figures"] = "figures"


@dataclass(frozen=True, slots=True)
class Missing:
    """A part of the page that is missing, and the reason."""

    text: str
    kind: Literal["missing"] = "missing"


@dataclass(frozen=True, slots=True)
class Notes:
    """Lines, such as the problems of a validation."""

    lines: Sequence[str]
    kind: Literal["notes"] = "notes"


@dataclass(frozen=True, slots=True)
class Text:
    """A sample: rounds of pieces, each round in its order."""

    title: str
    caption: str
    rounds: Sequence[Sequence[Piece]]
    num_left_out: int
    """Tokens after the last that is shown."""


@dataclass(frozen=True, slots=True)
class Texts:
    texts: Sequence[Text]
    kind: Literal["texts"] = "texts"


Block = Table | Figures | Missing | Notes | Texts


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    """Its anchor."""
    title: str
    lead: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Tile:
    """A key figure."""

    label: str
    value: str
    note: str = ""
    mood: Literal["", "good", "bad"] = ""


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    subtitle: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    command: str = "specpipe report"
    """What wrote the page."""
