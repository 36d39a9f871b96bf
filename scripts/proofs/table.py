"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

import click


def show(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, row by row as they come."""
    click.echo(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        click.echo(f"| {' | '.join(row)} |")


def share(failed: int, runs: int) -> str:
    """A rate of failures."""
    return f"{failed / runs:.1%} of {runs:,}" if failed else f"0 of {runs:,}"
