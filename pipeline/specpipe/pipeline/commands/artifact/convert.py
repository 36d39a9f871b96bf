"""`specpipe convert`."""

from pathlib import Path
from typing import Any

import click

from specpipe.pipeline.launch.provenance import write_provenance
from specpipe.pipeline.terminal.console import file_size, note, quiet_libraries, show
from specpipe.pipeline.terminal.flags import flag, flags_of
from specpipe.pipeline.terminal.options import GroupedCommand, json_option, with_options
from specpipe.pipeline.terminal.settings import load_config
from specpipe.schemas.settings.stages import ConvertConfig

_OPTIONS = flags_of(
    (ConvertConfig,),
    {
        "The artifact": (
            flag("--out", required=True),
            flag("--format", required=True),
            "--target",
            "--revision",
            "--speculative-tokens",
            "--trust-remote-code",
        ),
    },
)


@click.command(
    cls=GroupedCommand, short_help="Write another program's drafter as engines load it, and back."
)
@click.argument("source", metavar="SRC")
@with_options(_OPTIONS)
@json_option
def convert(as_json: bool, **flags: Any) -> None:
    """Write the drafter in SRC in another format.

    \b
      specpipe convert SpecForge/checkpoint --target TARGET \\
        --out artifact --format speculators
      specpipe convert runs/artifact --out sglang --format eagle3

    SRC is an artifact of SpecForge, EAGLE, ModelOpt, speculators or specpipe, as safetensors. Every
    tensor is written as it was read; one that is missing, unknown or of another shape is an error,
    and so is a drafter that the format cannot hold. `specpipe validate` proves the result.
    """
    config = load_config(ConvertConfig, None, flags)
    quiet_libraries()
    from specpipe.stages.export.convert import run

    result = run(config, progress=note)
    if not result.did_nothing:
        write_provenance(Path(result.out), config)
    layers = ", ".join(map(str, result.aux_layers))
    own = "own" if result.has_lm_head else "the target's"
    rows = [
        ("from", f"{result.source} ({result.source_format})"),
        ("artifact", f"{result.out} ({result.format}, {file_size(result.num_bytes)})"),
        ("target", result.target),
        ("auxiliary layers", layers + (" (EAGLE-3's default)" if result.layers_assumed else "")),
        ("draft vocabulary", f"{result.draft_vocab_size:,} of {result.vocab_size:,} tokens"),
        ("embedding", "own" if result.has_embedding else "the target's"),
        ("lm_head", own),
        ("state", "nothing to do" if result.did_nothing else "written"),
    ]
    show("Converted", rows, result.model_dump(mode="json"), as_json=as_json)
