"""The flags of `specpipe train`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from specpipe.pipeline.commands.train.idle_flags import refuse_idle
from specpipe.pipeline.terminal.flags import Flag, Models, flag, help_of
from specpipe.pipeline.terminal.settings import given, load_config
from specpipe.schemas.drafters.registry import DEFAULT, KINDS, settings_fields
from specpipe.schemas.settings.train import MIXTURES, LossName, TrainConfig

SomeTrainConfig = TypeVar("SomeTrainConfig", bound=TrainConfig)


def _weights(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> dict[str, str] | None:
    """`URL=WEIGHT` as a weight by URL."""
    parts = [value.rpartition("=") for value in values]
    if lacking := [weight for url, _, weight in parts if not url]:
        raise click.BadParameter(f"{lacking[0]!r} is not URL=WEIGHT, as in s3://bucket/dump=0.5")
    weights = {url: weight for url, _, weight in parts}
    if len(weights) < len(parts):
        raise click.BadParameter("a dump is named twice")
    return weights or None


_OVERRIDING = {"max_steps": "num_epochs", "batch_size": "batch_tokens"}
"""What the one would override, were it given beside it: in the file, below a flag, it gives way."""


def of_drafters(*names: str) -> Iterator[Flag]:
    """Flags that drafters have; the help says of which where not all have it, or the same one."""
    for name in names:
        setting = flag(name).setting
        kinds_by_text: dict[str, list[str]] = {}
        for kind in settings_fields()[setting]:
            text = help_of(KINDS[kind].settings.model_fields[setting])
            kinds_by_text.setdefault(text, []).append(kind)
        texts = [
            text if len(kinds) == len(KINDS) else f"{', '.join(kinds)}: {text}"
            for text, kinds in kinds_by_text.items()
        ]
        yield flag(name, help=" ".join(texts))


MODELS: Models = (TrainConfig, *(kind.settings for kind in KINDS.values()))
"""Where the settings of `TRAIN` are: beside the others, or a drafter's own."""

DATA, DRAFTER, LOSS = "What is read", "The drafter", "The loss"
STEPS, EVALUATION = "Steps and optimiser", "Evaluation"
RUN, MACHINE = "The run", "The machine"

TRAIN: dict[str, tuple[str | Flag, ...]] = {
    DATA: (
        "--dump",
        flag("--mix", metavar="URL=WEIGHT", multiple=True, callback=_weights),
        "--layers",
        "--context-length",
        "--data-fraction",
        "--preverify",
        "--prefetch-mib",
    ),
    DRAFTER: (
        flag(
            "--drafter",
            is_flag=False,
            metavar="|".join(KINDS),
            help=f"Architecture of the drafter.  [default: {DEFAULT}]",
        ),
        "--draft-vocab-size",
        "--draft-vocab-by",
        "--draft-vocab-file",
        "--init-from",
        "--warm-start",
        *of_drafters(
            "--layer-type",
            "--num-layers",
            "--sliding-window",
            "--hidden-size",
            "--num-attention-heads",
            "--num-key-value-heads",
            "--head-dim",
            "--rope-theta",
            "--intermediate-size",
            "--norm-before-residual/--no-norm-before-residual",
            "--norm-before-fc/--no-norm-before-fc",
            "--fc-norm/--no-fc-norm",
            "--norm-output/--no-norm-output",
            "--causal/--no-causal",
            "--anchors",
            "--mask-token",
            "--own-lm-head/--no-own-lm-head",
            "--fresh-layer",
            "--markov-rank",
            "--confidence/--no-confidence",
            "--serve-anywhere",
            "--depth-ratio",
            "--depth-floor",
            "--block-bias/--no-block-bias",
            "--feature-regression",
        ),
    ),
    LOSS: (
        flag("--loss", metavar="|".join([*get_args(LossName), *MIXTURES, "NAME=WEIGHT,..."])),
        "--eta",
        "--lambda-source",
        "--lambda-scope",
        "--num-heads",
        "--head-weights",
        "--dpace-smoothing",
        "--head-decay",
        "--state-loss",
    ),
    STEPS: (
        "--num-epochs",
        "--max-steps",
        "--batch-tokens",
        "--batch-size",
        "--optimizer",
        "--learning-rate",
        "--muon-learning-rate",
        "--schedule",
        "--warmup-ratio",
        "--wsd-decay",
        "--muon-momentum",
        "--muon-weight-decay",
        "--adam-betas",
        "--weight-decay",
        "--max-grad-norm",
        "--seed",
    ),
    EVALUATION: (
        "--held-out-fraction",
        "--eval-dump",
        "--eval-every",
        "--eval-tokens",
        "--early-stop",
    ),
    RUN: (
        "--out",
        "--preset",
        "--log",
        "--log-project",
        "--log-name",
        "--checkpoint-every",
        "--keep-checkpoints",
        "--require-servable",
        "--time-limit",
    ),
    MACHINE: (
        "--device",
        "--dtype",
        "--pack-tokens",
        "--loss-chunk-mib",
        "--attention",
        "--activation-checkpointing/--no-activation-checkpointing",
        "--embedding-on-cpu/--no-embedding-on-cpu",
        "--shard",
    ),
}
"""What `train` and `tune` take, by heading."""


def train_config(path: Path | None, flags: dict[str, Any]) -> TrainConfig:
    """The configuration that a file and flags make; a flag without effect is refused."""
    return config_of(TrainConfig, path, flags)


def config_of(
    kind: type[SomeTrainConfig], path: Path | None, flags: dict[str, Any]
) -> SomeTrainConfig:
    """The same of a command that takes the settings of training and some of its own."""
    config = load_config(kind, path, flags, _OVERRIDING)
    refuse_idle(config, given(flags))
    return config
