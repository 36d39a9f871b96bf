"""The flags of level `serve`, shared by `export` and `validate`, and the table of its findings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from specpipe.pipeline.terminal.console import show_columns
from specpipe.pipeline.terminal.options import Function, comma_integers, with_options

if TYPE_CHECKING:
    from specpipe.schemas.records.served import Served

_OPTIONS = (
    click.Option(
        ["--serve-data"],
        help="JSONL (messages or pretokenised) whose prompts `serve` decodes."
        "  [default: the dump's]",
    ),
    click.Option(
        ["--serve-prompts"], type=int, help="Prompts that `serve` decodes.  [default: 100]"
    ),
    click.Option(["--serve-max-tokens"], type=int, help="Tokens per prompt.  [default: 128]"),
    click.Option(
        ["--serve-speculative-tokens"],
        callback=comma_integers,
        help="Numbers of draft tokens to measure, e.g. 3,5.  [default: 3]",
    ),
    click.Option(
        ["--serve-batch-sizes"],
        callback=comma_integers,
        help="Batch sizes at which steps are timed.  [default: 1,8]",
    ),
    click.Option(["--seed"], type=int, help="Seed of the sampling in `serve`.  [default: 0]"),
    click.Option(
        ["--trust-remote-code"], is_flag=True, default=None, help="Run the target's own code."
    ),
)


def serve_options(function: Function) -> Function:
    return with_options(_OPTIONS, function)


def show_served(runs: Sequence["Served"]) -> None:
    """tau as vLLM measured it, beside the replay of the texts that it wrote."""
    rows = []
    for served in runs:
        for name, tau in (("greedy", served.greedy), ("temperature 1", served.temperature_1)):
            if tau is not None:
                figures = (f"{tau.tau_measured:.4f}", f"{tau.tau_replayed:.4f}")
                difference = f"{tau.relative_difference:+.2%}"
                rows.append((f"{served.num_draft_tokens}, {name}", *figures, difference))
    if rows:
        header = ["draft tokens", "measured", "replayed", "difference"]
        show_columns("tau in vLLM, on the texts that it wrote", header, rows)
