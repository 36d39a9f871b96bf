"""`specpipe plan`: the contents and costs of a dump, before it is made."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.pipeline.commands.dump.options import dump_config, dump_options
from specpipe.pipeline.commands.engine_support import say_served
from specpipe.pipeline.terminal.console import (
    counted,
    file_size,
    quiet_libraries,
    show,
    show_columns,
)
from specpipe.pipeline.terminal.options import (
    GroupedCommand,
    config_option,
    json_option,
    with_options,
)
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.location import without_credentials

if TYPE_CHECKING:
    from specpipe.stages.plan.run import Estimate, Lengths
    from specpipe.stages.target.vllm.support.servable import Servable

_BAR_WIDTH = 40
_NOWHERE = "-"
"""A dump that is only planned need not have a place."""


@click.command(cls=GroupedCommand, short_help="Say what a dump will take, before it is made.")
@click.argument("url", required=False)
@config_option
@with_options(dump_options)
@json_option
def plan(url: str | None, config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Say what a dump will hold and take, before anything is spent.

    \b
      specpipe plan --target sample_data/target \\
        --data sample_data/train/conversations.jsonl

    Takes the flags of `specpipe dump`, of which those under "Who does it" change nothing here, or
    the URL of a dump that is there. Samples, tokens and their lengths; bytes and objects for each
    way to keep the logits and each format; memory of a trainer with default settings. Of the target
    only config and tokenizer are read, and nothing is written. The figures of --generate are the
    most that it may be.
    """
    required = bool(flags.get("require_servable"))
    given = [
        name
        for name, value in flags.items()
        if value not in (None, ()) and name != "require_servable"
    ]
    if url is not None and (given or config_file is not None):
        raise ConfigError(
            f"plan takes a dump ({without_credentials(url)}) or the flags of one, not both"
        )
    config = None if url is not None else dump_config(config_file, flags, default_out=_NOWHERE)
    quiet_libraries()
    from specpipe.stages.plan import run as planning

    estimate = planning.estimate(config) if config else planning.estimate_dump(str(url))
    served = say_served(
        estimate.identity.target.architecture,
        required=config.require_servable if config else required,
    )
    _show_lengths(estimate)
    _show_sizes(estimate)
    _show_memory(estimate)
    show("Plan", _rows(estimate, served), _result(estimate, served), as_json=as_json)


def _rows(estimate: "Estimate", served: "Servable") -> list[tuple[str, str]]:
    target, most = estimate.identity.target, "at most " if estimate.is_generated else ""
    repeated = f", {estimate.num_repeated:,} more are repeated" if estimate.num_repeated else ""
    masked = estimate.num_partly_masked
    return [
        ("target", f"{target.name} ({target.architecture})"),
        ("drafters served", _served(served)),
        ("layers", f"{', '.join(map(str, estimate.identity.layers))} of {target.num_layers}"),
        (
            "samples",
            f"{estimate.num_samples:,}, of which {estimate.num_truncated:,} truncated{repeated}",
        ),
        ("not dumped", f"{estimate.num_rejected:,} refused, {estimate.num_left_out:,} too long"),
        *([("partly masked", f"{masked:,} conversations")] if masked else []),
        ("tokens", f"{most}{estimate.num_tokens:,} in {counted(estimate.num_shards, 'shard')}"),
        ("supervised", f"{most}{estimate.num_supervised:,} ({_percent(estimate)} % of the tokens)"),
        ("size", f"{most}{file_size(estimate.chosen.num_bytes)}"),
        ("objects", f"{most}{estimate.chosen.num_objects:,}"),
        ("training", f"{most}{estimate.recipe.in_words()}"),
        *([("too little", estimate.recipe.shortage)] if estimate.recipe.shortage else []),
        (
            "trainer memory",
            f"about {file_size(estimate.trainer.total)} of the device, "
            f"{file_size(estimate.read_ahead)} of the host, and 0.5 to 1 GiB of the process itself",
        ),
    ]


def _served(served: "Servable") -> str:
    if served.how in ("vllm", "transformers"):
        return f"by {served.engine}"
    if served.how == "plugin":
        return f"by {served.engine} with specpipe beside it (docs/targets.md)"
    return "unknown" if served.how == "unknown" else f"not by {served.engine} (docs/targets.md)"


def _percent(estimate: "Estimate") -> int:
    return round(100 * estimate.num_supervised / estimate.num_tokens)


def _show_lengths(estimate: "Estimate") -> None:
    most = max(lengths.num_samples for lengths in estimate.lengths)
    rows = [
        (
            f"{lengths.first:,} to {lengths.last:,}",
            f"{lengths.num_samples:,}",
            _bar(lengths, most).ljust(_BAR_WIDTH),
        )
        for lengths in estimate.lengths
    ]
    show_columns("Lengths", ["tokens", "samples", ""], rows)


def _bar(lengths: "Lengths", most: int) -> str:
    """A bar in proportion; what is not nothing is seen."""
    width = round(_BAR_WIDTH * lengths.num_samples / most)
    return "#" * max(width, 1 if lengths.num_samples else 0)


def _show_sizes(estimate: "Estimate") -> None:
    by_mode = {
        (size.logits, size.shard_format): (file_size(size.num_bytes), f"{size.num_objects:,}")
        for size in estimate.sizes
    }
    chosen = estimate.identity.logits
    modes = dict.fromkeys(size.logits for size in estimate.sizes)
    rows = [
        (f"{mode} *" if mode == chosen else mode, *by_mode[mode, "zarr"], *by_mode[mode, "parquet"])
        for mode in modes
    ]
    header = ["logits", "zarr size", "objects", "parquet size", "objects"]
    kind = f"{estimate.identity.states_dtype} states"
    if estimate.identity.compression != "none":
        kind += ", before compression"
    show_columns(f"Size ({kind}; * as configured)", header, rows)


def _show_memory(estimate: "Estimate") -> None:
    memory = estimate.trainer
    parts = [
        (f"weights, {memory.num_trained:,} float32", memory.weights),
        ("gradients", memory.gradients),
        ("optimiser's moments, at most", memory.optimizer),
        ("target's embedding and lm_head", memory.frozen),
        (f"states of {memory.batch_tokens:,} tokens", memory.batch),
        (f"activations of {memory.num_heads} heads", memory.activations),
        (f"loss, {memory.draft_vocab_size:,} draft tokens", memory.loss),
        ("together, of the device", memory.total),
        ("of the host: shards that are read ahead, beside the process itself", estimate.read_ahead),
    ]
    show_columns(
        "Trainer memory (specpipe train with nothing set: an EAGLE-3 drafter)",
        ["what", "size"],
        [(name, file_size(size)) for name, size in parts],
    )


def _result(estimate: "Estimate", served: "Servable") -> dict[str, Any]:
    values = asdict(estimate)
    values["servable"] = served.to_dict()
    values["identity"] = estimate.identity.model_dump(mode="json")
    values["chosen"] = asdict(estimate.chosen)
    values["recipe"] = estimate.recipe.record.model_dump(mode="json")
    values["trainer"] |= {"total": estimate.trainer.total, "read_ahead": estimate.read_ahead}
    return values
