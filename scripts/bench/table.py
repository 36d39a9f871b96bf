"""Markdown on standard output."""

from collections.abc import Iterable, Sequence


def heading(text: str) -> None:
    print(f"\n## {text}\n", flush=True)


def note(text: str) -> None:
    print(f"{text}\n", flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [columns, ["---"] * len(columns), *rows]
    for line in lines:
        assert len(line) == len(columns), line
        print(f"| {' | '.join(line)} |", flush=True)
    print(flush=True)


def verdict(target: str, is_met: bool) -> str:
    """What was aimed at, and whether it is there."""
    return f"{target}: {'met' if is_met else 'NOT met'}"
