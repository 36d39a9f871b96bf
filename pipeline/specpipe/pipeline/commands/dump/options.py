"""The flags that describe a dump, shared by `dump` and `plan`, and the settings they make."""

from pathlib import Path
from typing import Any

import click

from specpipe.pipeline.terminal.options import (
    Function,
    GroupedOption,
    comma_integers,
    json_object,
    named_values,
    with_options,
)
from specpipe.pipeline.terminal.settings import load_config, read_settings
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig, GenerateConfig

_GENERATE = tuple(GenerateConfig.model_fields)


_FROM, _TO, _HOW, _WHO = "What goes in", "What is stored", "How the target runs", "Who does it"
_TEXT = "On-policy text (--generate)"

_INPUT_OPTIONS = (
    GroupedOption(_FROM, "--target", help="Local folder or hub id of the target."),
    GroupedOption(_FROM, "--revision", help="Revision of a hub target."),
    GroupedOption(
        _FROM,
        "--data",
        multiple=True,
        help="JSONL or Parquet file, folder or glob, any fsspec URL; may be given several times.",
    ),
    GroupedOption(
        _FROM,
        "--context-length",
        type=int,
        help="Truncate longer samples to this many tokens.  [default: the target's maximum]",
    ),
    GroupedOption(
        _FROM,
        "--loss-mask",
        type=click.Choice(["auto", "markers", "boundaries"]),
        help="How the assistant's tokens are found in a conversation: by the template's"
        " {% generation %} markers, or by rendering it with and without each turn."
        "  [default: markers where there are any]",
    ),
    GroupedOption(
        _FROM,
        "--chat-template-kwargs",
        metavar="JSON",
        callback=json_object,
        help="""Variables of the chat template, e.g. '{"enable_thinking": false}'; a row's own"""
        " win.",
    ),
    GroupedOption(
        _FROM, "--max-rejected", type=int, help="Malformed inputs to tolerate.  [default: 0]"
    ),
    GroupedOption(
        _FROM, "--trust-remote-code", is_flag=True, default=None, help="Run the target's own code."
    ),
)

_OPTIONS = (
    *_INPUT_OPTIONS,
    GroupedOption(
        _FROM, "--context-limit", type=int, help="Without --context-length: no more than this."
    ),
    GroupedOption(
        _FROM,
        "--text-temperature",
        type=float,
        help="Say that this target wrote the given answers, at this temperature (0: greedy): the"
        " replay is exact only then.",
    ),
    GroupedOption(
        _FROM,
        "--require-servable",
        is_flag=True,
        default=None,
        help="Exit code 2 where vLLM serves no drafters for the target.  [default: a warning]",
    ),
    GroupedOption(_TO, "--out", help="Root of the dump: a path or an fsspec URL."),
    GroupedOption(
        _TO,
        "--format",
        type=click.Choice(["zarr", "parquet"]),
        help="Storage format of the shards.  [default: zarr]",
    ),
    GroupedOption(
        _TO,
        "--logits",
        metavar="final|topk:N|full",
        help="What is kept of the target's logits: final states, from which they follow exactly;"
        " the N largest; or all.  [default: final]",
    ),
    GroupedOption(
        _TO,
        "--layers",
        metavar="IDS",
        callback=comma_integers,
        help="Auxiliary layers, e.g. 2,16,29: id k is what enters decoder layer k."
        "  [default: 2, n//2, n-3]",
    ),
    GroupedOption(
        _TO,
        "--states",
        type=click.Choice(["bfloat16", "int8"]),
        help="How auxiliary states are stored; int8 takes half the space, and its error is"
        " measured and stored.  [default: bfloat16]",
    ),
    GroupedOption(
        _TO,
        "--compression",
        type=click.Choice(["none", "zstd"]),
        help="Lossless; zstd saves about a quarter for several times the CPU.  [default: none]",
    ),
    GroupedOption(
        _TO,
        "--shard-tokens",
        type=int,
        help="Tokens of one shard, the unit of work and of resume.  [default: 32768]",
    ),
    GroupedOption(
        _TO, "--chunk-tokens", type=int, help="Most rows of a chunk.  [default: about 48 MiB]"
    ),
    GroupedOption(
        _HOW,
        "--backend",
        type=click.Choice(["auto", "hf", "vllm"]),
        help="hf is transformers.  [default: vLLM where it is installed and knows the target]",
    ),
    GroupedOption(
        _HOW,
        "--engine",
        metavar="NAME=VALUE",
        multiple=True,
        callback=named_values,
        help="An option of vLLM by its own name, e.g. tensor_parallel_size=2; may be given several"
        " times.",
    ),
    GroupedOption(
        _HOW,
        "--dtype",
        type=click.Choice(["auto", "bfloat16", "float32"]),
        help="Dtype in which the target runs.  [default: the checkpoint's own]",
    ),
    GroupedOption(
        _HOW, "--device", help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]"
    ),
    GroupedOption(
        _HOW,
        "--batch-tokens",
        type=int,
        help="Most tokens of one forward pass.  [default: 8192]",
    ),
    GroupedOption(
        _HOW,
        "--write-buffer-mib",
        type=int,
        help="Most MiB of states that wait for the store.  [default: 256]",
    ),
    GroupedOption(
        _HOW,
        "--staging-mib",
        type=int,
        help="Most MiB of states between vLLM's engine and the writer.  [default: 1024]",
    ),
    GroupedOption(
        _TEXT,
        "--generate",
        is_flag=True,
        default=None,
        help="Let the target write the assistant's turns itself, and capture its states meanwhile;"
        " the data gives the prompts. What follows needs it, or `generate:` in the file.",
    ),
    GroupedOption(
        _TEXT,
        "--temperature",
        type=float,
        help="0 takes the most likely token.  [default: 1]",
    ),
    GroupedOption(
        _TEXT,
        "--top-p",
        type=float,
        help="Sample among the likeliest tokens of this summed probability; below 1 no replay is"
        " exact.  [default: 1]",
    ),
    GroupedOption(_TEXT, "--max-tokens", type=int, help="Most tokens of one turn.  [default: 512]"),
    GroupedOption(
        _TEXT,
        "--stop",
        metavar="TEXT",
        multiple=True,
        help="Text that ends a turn, besides the target's own end; may be given several times.",
    ),
    GroupedOption(
        _TEXT,
        "--generate-seed",
        "--seed",
        "seed",
        type=int,
        help="Seed; every sample's own seed follows from it.  [default: 0]",
    ),
    GroupedOption(
        _TEXT, "--samples-per-prompt", type=int, help="Answers to each prompt.  [default: 1]"
    ),
    GroupedOption(
        _WHO,
        "--executor",
        type=click.Choice(["local", "ray"]),
        help="Workers are processes of this machine, or actors of a Ray cluster.  [default: local]",
    ),
    GroupedOption(_WHO, "--workers", type=int, help="Engines of this command.  [default: 1]"),
    GroupedOption(
        _WHO,
        "--worker-index",
        metavar="N|auto",
        help="This is worker N of --worker-count; auto: as SLURM or a Kubernetes indexed job says.",
    ),
    GroupedOption(_WHO, "--worker-count", type=int, help="Commands that share the dump."),
    GroupedOption(_WHO, "--time-limit", type=float, help="Seconds; then leave with exit code 5."),
)


def dump_options(function: Function) -> Function:
    """All that describes a dump."""
    return with_options(_OPTIONS, function)


def input_options(function: Function) -> Function:
    """The part of it that says what text there is, and how it becomes tokens."""
    return with_options(_INPUT_OPTIONS, function)


def dump_config(
    config_file: Path | None, flags: dict[str, Any], default_out: str | None = None
) -> DumpConfig:
    """The configuration of a dump; `default_out` stands for an --out that is not given.

    Raises ConfigError for a flag of --generate where nothing is to be generated.
    """
    settings = {} if config_file is None else read_settings(config_file)
    rest = {name: value for name, value in flags.items() if name not in (*_GENERATE, "generate")}
    given = {name: flags[name] for name in _GENERATE if flags.get(name) not in (None, ())}
    if flags.get("generate") or (given and settings.get("generate") is not None):
        rest["generate"] = given
    elif given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{named}: only with --generate, which lets the target write the text")
    if default_out is not None and not rest.get("out") and "out" not in settings:
        rest["out"] = default_out
    return load_config(DumpConfig, config_file, rest)
