"""A sample on stderr, so that a person sees its loss mask: in colour, or in brackets without."""

from collections.abc import Sequence

from rich.text import Text

from specpipe.pipeline.terminal.console import note, stderr
from specpipe.schemas.printable import printable


def show_masked(title: str, figures: str, pieces: Sequence[tuple[str, bool]]) -> None:
    """The pieces of a text, those that are supervised (True) in green, or [in brackets]."""
    in_colour = stderr.is_terminal and stderr.color_system is not None and not stderr.no_color
    how = "in green" if in_colour else "in brackets"
    note(title)
    note(f"{figures} ({how}):")
    text = Text()
    for piece, supervised in ((printable(raw), mask) for raw, mask in pieces):
        if in_colour:
            text.append(piece, style="green" if supervised else "dim")
        else:
            text.append(f"[{piece}]" if supervised else piece)
    stderr.print(text, soft_wrap=True)
    note("")
