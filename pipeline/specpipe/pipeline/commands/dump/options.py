"""The flags that describe a dump, shared by `dump` and `plan`, and the settings they make."""

from pathlib import Path
from typing import Any

from specpipe.pipeline.terminal.flags import flag, flags_of
from specpipe.pipeline.terminal.options import comma_words, json_object, named_values
from specpipe.pipeline.terminal.settings import load_config, read_settings
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig, GenerateConfig

_GENERATE = tuple(GenerateConfig.model_fields)


INPUT = (
    "--target",
    "--revision",
    "--data",
    "--context-length",
    "--loss-mask",
    flag("--chat-template-kwargs", metavar="JSON", callback=json_object),
    "--max-rejected",
    "--trust-remote-code",
)
"""What text there is, and how it becomes tokens."""

dump_options = flags_of(
    (DumpConfig, GenerateConfig),
    {
        "What goes in": (*INPUT, "--context-limit", "--text-temperature", "--require-servable"),
        "What is stored": (
            "--out",
            "--format",
            flag("--logits", metavar="final|topk:N|full"),
            "--layers",
            flag("--for", "for_drafters", metavar="NAME,...", multiple=False, callback=comma_words),
            "--states",
            "--compression",
            "--shard-tokens",
            "--chunk-tokens",
        ),
        "How the target runs": (
            "--backend",
            flag("--engine", metavar="NAME=VALUE", multiple=True, callback=named_values),
            "--dtype",
            "--device",
            "--batch-tokens",
            "--write-buffer-mib",
            "--staging-mib",
        ),
        "On-policy text (--generate)": (
            "--generate",
            "--temperature",
            "--top-p",
            "--max-tokens",
            "--stop",
            flag("--generate-seed", "--seed", "seed"),
            "--samples-per-prompt",
        ),
        "Who does it": (
            "--executor",
            "--workers",
            flag("--worker-index", metavar="N|auto"),
            "--worker-count",
            "--time-limit",
        ),
    },
)
"""All that describes a dump."""


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
