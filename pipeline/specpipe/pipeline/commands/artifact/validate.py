"""`specpipe validate`."""

from typing import Any, get_args

import click

from specpipe.pipeline.commands.artifact.serve_options import serve_options, show_served
from specpipe.pipeline.terminal.console import note, quiet_libraries, show, show_columns
from specpipe.pipeline.terminal.options import comma_words, json_option
from specpipe.pipeline.terminal.settings import load_config
from specpipe.schemas.settings.stages import DraftSampleMethod, ValidateConfig
from specpipe.stages.process.interrupt import stops_early


@click.command(short_help="Prove an artifact, without the run that it came from.")
@click.argument("artifact", metavar="ARTIFACT")
@click.option("--dump", required=True, help="Dump of its target, to replay on.")
@click.option(
    "--validation",
    "--levels",
    "validation",
    callback=comma_words,
    help="Proofs to give: structure,replay,serve.  [default: structure,replay]",
)
@click.option("--target", help="Target for `serve`.  [default: as the dump names it]")
@click.option("--out", help="File of the findings (JSON).")
@click.option(
    "--speculative-tokens", type=int, help="Most draft tokens.  [default: the artifact's]"
)
@click.option("--replay-samples", type=int, help="Most samples of `replay`.  [default: all]")
@serve_options
@click.option("--serve-url", help="A vLLM server that `serve` measures, e.g. http://host:8000.")
@click.option("--serve-model", help="Model name in the server's API.  [default: the only one]")
@click.option(
    "--serve-draft-sample-method",
    type=click.Choice(get_args(DraftSampleMethod)),
    help="Draft sampling method that the server was started with.  [default: probabilistic]",
)
@json_option
def validate(as_json: bool, **flags: Any) -> None:
    """Prove that the drafter in ARTIFACT works with the target of a dump.

    \b
      specpipe validate runs/artifact --dump runs/dump
      specpipe validate sglang --dump runs/dump --validation structure,serve

    ARTIFACT is what `specpipe export` or `specpipe convert` wrote, in either format; another
    program's goes through convert first. The structure is always checked.
    replay says what tau to expect on the dump's samples, by two implementations that must agree;
    serve starts a real vLLM and measures it; with --serve-url it measures a server that runs
    already, as it was started, and that nobody else uses meanwhile (its token is taken from
    SPECPIPE_SERVE_TOKEN). A level that fails is exit code 4.
    """
    config = load_config(ValidateConfig, None, flags)
    quiet_libraries()
    with stops_early():
        from specpipe.stages.validate.run import run

        result = run(config, progress=note)
    replay = result.replay
    if replay is not None:
        curves = {name.removeprefix("replay_"): c.tau for name, c in replay.artifact.items()}
        most = max(map(len, curves.values()), default=0)
        show_columns(
            f"tau of {replay.num_samples:,} samples, by number of draft tokens",
            ["", *map(str, range(1, most + 1))],
            [(name, *(f"{value:.3f}" for value in tau)) for name, tau in curves.items()],
        )
    show_served(result.serve.runs if result.serve is not None else [])
    levels = {"structure": result.structure, "replay": replay, "serve": result.serve}
    rows = [
        ("artifact", result.artifact),
        ("tensors", f"{result.structure.num_tensors:,}"),
        ("parameters", f"{result.structure.num_parameters:,}"),
        ("passed", ", ".join(name for name, found in levels.items() if found is not None)),
    ]
    show("Validation", rows, result.model_dump(mode="json"), as_json=as_json)
