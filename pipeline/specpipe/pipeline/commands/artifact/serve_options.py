"""The flags of level `serve`, shared by `export` and `validate`, and the table of its findings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specpipe.pipeline.terminal.console import show_columns

if TYPE_CHECKING:
    from specpipe.schemas.records.served import Served

SERVE = (
    "--serve-data",
    "--serve-prompts",
    "--serve-max-tokens",
    "--serve-speculative-tokens",
    "--serve-batch-sizes",
    "--seed",
    "--trust-remote-code",
)


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
