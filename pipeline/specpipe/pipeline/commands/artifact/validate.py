"""`specpipe validate`."""

from typing import Any

import click

from specpipe.pipeline.commands.artifact.serve_options import SERVE, show_served
from specpipe.pipeline.terminal.console import note, quiet_libraries, show, show_columns
from specpipe.pipeline.terminal.flags import flag, flags_of
from specpipe.pipeline.terminal.options import GroupedCommand, json_option, with_options
from specpipe.pipeline.terminal.settings import load_config
from specpipe.schemas.settings.stages import ValidateConfig
from specpipe.stages.process.stop import stops_early

_OPTIONS = flags_of(
    (ValidateConfig,),
    {
        "What is proven": (
            flag("--dump", required=True),
            flag("--validation", "--levels", "validation"),
            "--target",
            "--out",
            "--speculative-tokens",
            "--replay-samples",
        ),
        "Level serve": (*SERVE, "--serve-url", "--serve-model", "--serve-draft-sample-method"),
    },
)


@click.command(
    cls=GroupedCommand, short_help="Prove an artifact, without the run that it came from."
)
@click.argument("artifact", metavar="ARTIFACT")
@with_options(_OPTIONS)
@json_option
def validate(as_json: bool, **flags: Any) -> None:
    """Prove that the drafter in ARTIFACT works with the target of a dump.

    \b
      specpipe validate runs/artifact --dump runs/dump
      specpipe validate sglang --dump runs/dump --validation structure,serve

    ARTIFACT is what `specpipe export` or `specpipe convert` wrote, in any format; another
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
        curves = {
            name.removeprefix("replay_").replace("_", " "): curve.tau
            for name, curve in replay.artifact.items()
        }
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
