"""The flags of `specpipe train`."""

from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from specpipe.pipeline.commands.train.idle_flags import refuse_idle
from specpipe.pipeline.terminal.options import (
    Function,
    GroupedOption,
    comma_integers,
    comma_words,
    with_options,
)
from specpipe.pipeline.terminal.settings import given, load_config
from specpipe.schemas.drafters.registry import DEFAULT, KINDS
from specpipe.schemas.settings.recipe import MUON_RATE, MUON_RATE_TOKENS, PASS_TOKENS
from specpipe.schemas.settings.train import (
    MIXTURES,
    AttentionName,
    LossName,
    PresetName,
    TrainConfig,
)

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

_DATA, _DRAFTER, _LOSS = "What is read", "The drafter", "The loss"
_STEPS, _EVAL = "Steps and optimiser", "Evaluation"
_RUN, _MACHINE = "The run", "The machine"

_OPTIONS = (
    GroupedOption(_DATA, "--dump", help="Root of the dump: a path or an fsspec URL."),
    GroupedOption(
        _DATA,
        "--mix",
        metavar="URL=WEIGHT",
        multiple=True,
        callback=_weights,
        help="A further dump of the same target, and the passes over it to one over --dump; may be"
        " given several times.",
    ),
    GroupedOption(
        _DATA,
        "--layers",
        metavar="IDS",
        callback=comma_integers,
        help="Auxiliary layers, of those of the dump; no others are read.  [default: all]",
    ),
    GroupedOption(
        _DATA, "--context-length", type=int, help="Truncate longer samples to this many tokens."
    ),
    GroupedOption(
        _DATA,
        "--data-fraction",
        type=float,
        help="Train on this share of the prompts.  [default: 1]",
    ),
    GroupedOption(
        _DATA,
        "--preverify",
        type=click.Choice(["auto", "full", "metadata"]),
        help="Read the whole dump before the first step.  [default: auto: if under 16 GiB]",
    ),
    GroupedOption(
        _DATA,
        "--prefetch-mib",
        type=int,
        help="MiB of shards to read ahead, at most.  [default: 4096]",
    ),
    GroupedOption(
        _DRAFTER,
        "--drafter",
        metavar="NAME",
        help=f"Architecture: {', '.join(KINDS)}, or one of an installed package.  [default:"
        f" {DEFAULT}]",
    ),
    GroupedOption(
        _DRAFTER,
        "--draft-vocab-size",
        type=int,
        help="Draft vocabulary size, D.  [default: 32000 or the whole vocabulary]",
    ),
    GroupedOption(
        _DRAFTER, "--draft-vocab-by", type=click.Choice(["mass", "count"]), help="[default: mass]"
    ),
    GroupedOption(
        _DRAFTER, "--draft-vocab-file", help="A ready map: safetensors with d2t, or .npy."
    ),
    GroupedOption(_DRAFTER, "--init-from", help="Folder of an artifact to go on from."),
    GroupedOption(
        _DRAFTER,
        "--warm-start",
        help="The target's checkpoint: begin with its last layer's weights where they fit.",
    ),
    GroupedOption(
        _DRAFTER,
        "--layer-type",
        type=click.Choice(["llama", "qwen3"]),
        help="qwen3 norms queries and keys.  [default: llama]",
    ),
    GroupedOption(_DRAFTER, "--num-layers", type=int, help="Decoder layers.  [default: 1]"),
    GroupedOption(_DRAFTER, "--sliding-window", type=int, help="Most positions that a query sees."),
    GroupedOption(
        _DRAFTER, "--hidden-size", type=int, help="Width of the drafter.  [default: the target's]"
    ),
    GroupedOption(
        _DRAFTER, "--num-attention-heads", type=int, help="Query heads.  [default: the target's]"
    ),
    GroupedOption(
        _DRAFTER,
        "--num-key-value-heads",
        type=int,
        help="Key and value heads.  [default: the target's]",
    ),
    GroupedOption(
        _DRAFTER, "--head-dim", type=int, help="Size of a head.  [default: the target's]"
    ),
    GroupedOption(
        _DRAFTER, "--rope-theta", type=float, help="Base of rope.  [default: the target's]"
    ),
    GroupedOption(
        _DRAFTER, "--intermediate-size", type=int, help="Width of the MLP.  [default: the target's]"
    ),
    *(
        GroupedOption(_DRAFTER, f"--{name}/--no-{name}", default=None, help=text)
        for name, text in (
            (
                "norm-before-residual",
                "Take the normed hidden state as the residual.  [default: on]",
            ),
            ("norm-before-fc", "RMSNorm on the concatenated auxiliary states.  [default: on]"),
            ("fc-norm", "RMSNorm on each auxiliary state."),
            ("norm-output", "Feed the normed output to the next draft step."),
        )
    ),
    GroupedOption(
        _DRAFTER,
        "--serve-anywhere",
        is_flag=True,
        default=None,
        help="Plain EAGLE-3, without the norms that SGLang, TensorRT-LLM and older vLLM do not"
        " know; for the first two then specpipe export --format eagle3.",
    ),
    GroupedOption(
        _LOSS,
        "--loss",
        metavar="LOSS",
        help=f"One of {', '.join([*get_args(LossName), *MIXTURES])}, or several with weights, as"
        " kl=0.5,tv=0.5."
        "  [default: lk_hybrid]",
    ),
    GroupedOption(
        _LOSS,
        "--eta",
        type=float,
        help="lk_hybrid: how fast KL's weight decays with alpha.  [default: 3]",
    ),
    GroupedOption(
        _LOSS,
        "--lambda-source",
        type=click.Choice(["previous_step", "exact"]),
        help="lk_hybrid: alpha of the last step, or of this one's batch, which is passed twice."
        "  [default: previous_step]",
    ),
    GroupedOption(
        _LOSS,
        "--lambda-scope",
        type=click.Choice(["head", "token"]),
        help="lk_hybrid: one lambda for a head's tokens, or each its own.  [default: head]",
    ),
    GroupedOption(
        _LOSS,
        "--head-weights",
        type=click.Choice(["static", "survival", "dpace"]),
        help="0.8^(k-1); how often a round comes so far; or per start, by what depends on a draft."
        "  [default: static]",
    ),
    GroupedOption(
        _LOSS,
        "--dpace-smoothing",
        type=float,
        help="dpace: a of (1 - a) q(token) + a.  [default: 0.5]",
    ),
    GroupedOption(
        _LOSS, "--num-heads", type=int, help="K, draft steps unrolled, 1 to 7.  [default: 3]"
    ),
    GroupedOption(
        _STEPS,
        "--learning-rate",
        type=float,
        help=f"Peak rate.  [default: {MUON_RATE:g}, less for steps under {MUON_RATE_TOKENS:,}"
        " tokens; adamw: about 1/width]",
    ),
    GroupedOption(
        _STEPS,
        "--optimizer",
        type=click.Choice(["adamw", "muon"]),
        help="muon: for matrices; lm_head and norms keep AdamW.  [default: muon]",
    ),
    GroupedOption(
        _STEPS,
        "--muon-learning-rate",
        type=float,
        help="Peak learning rate of Muon's matrices.  [default: as --learning-rate]",
    ),
    GroupedOption(
        _STEPS,
        "--schedule",
        type=click.Choice(["cosine", "linear", "wsd", "constant"]),
        help="Learning rate after warm-up; wsd: constant, then decay.  [default: cosine]",
    ),
    GroupedOption(
        _STEPS,
        "--warmup-ratio",
        type=float,
        help="Share of the steps that are warm-up.  [default: by the number of steps]",
    ),
    GroupedOption(
        _STEPS,
        "--muon-momentum",
        type=float,
        help="[default: 0.95]",
    ),
    GroupedOption(
        _STEPS,
        "--adam-betas",
        metavar="B1,B2",
        callback=comma_words,
        help="AdamW's betas.  [default: 0.9,0.95]",
    ),
    GroupedOption(
        _STEPS,
        "--wsd-decay",
        type=float,
        help="wsd: share of the steps that are decay.  [default: 0.2]",
    ),
    GroupedOption(_STEPS, "--weight-decay", type=float, help="[default: 0]"),
    GroupedOption(_STEPS, "--max-grad-norm", type=float, help="[default: 0.5]"),
    GroupedOption(_STEPS, "--num-epochs", type=int, help="[default: by the data; see below]"),
    GroupedOption(_STEPS, "--max-steps", type=int, help="Optimiser steps; overrides --num-epochs."),
    GroupedOption(
        _STEPS, "--batch-tokens", type=int, help="Token budget of a step.  [default: by the data]"
    ),
    GroupedOption(
        _STEPS, "--batch-size", type=int, help="Samples of a step, instead of --batch-tokens."
    ),
    GroupedOption(
        _MACHINE,
        "--pack-tokens",
        type=int,
        help="Token budget of one forward and backward pass.  [default: the whole step;"
        f" at most {PASS_TOKENS:,} of a step whose size is left open]",
    ),
    GroupedOption(_STEPS, "--seed", type=int, help="[default: 0]"),
    GroupedOption(
        _EVAL,
        "--held-out-fraction",
        type=float,
        help="Share of the prompts held out.  [default: 0.05]",
    ),
    GroupedOption(_EVAL, "--eval-dump", help="Evaluate on this dump instead of held-out prompts."),
    GroupedOption(
        _EVAL, "--eval-every", type=int, help="Steps between evaluations.  [default: a tenth]"
    ),
    GroupedOption(
        _EVAL,
        "--eval-tokens",
        type=int,
        help="Most tokens of one evaluation.  [default: by preset]",
    ),
    GroupedOption(
        _EVAL,
        "--early-stop",
        metavar="N",
        type=int,
        help="End after N evaluations without a better tau.  [default: never]",
    ),
    GroupedOption(
        _EVAL,
        "--learning-curve",
        is_flag=True,
        default=None,
        help="Train on 1/8, 1/4 and 1/2 of the data too, and say what more would bring.",
    ),
    GroupedOption(_RUN, "--out", help="Run directory, on a local disk."),
    GroupedOption(
        _RUN,
        "--preset",
        type=click.Choice(get_args(PresetName)),
        help="How much to spend; see below.  [default: default]",
    ),
    GroupedOption(
        _RUN,
        "--log",
        metavar="NAMES",
        callback=comma_words,
        help="tensorboard, wandb, trackio, mlflow, with commas between.  [default: metrics.jsonl]",
    ),
    GroupedOption(
        _RUN, "--log-project", help="Project or experiment of the loggers.  [default: specpipe]"
    ),
    GroupedOption(
        _RUN, "--log-name", help="Name of the run in the loggers.  [default: that of --out]"
    ),
    GroupedOption(
        _RUN,
        "--checkpoint-every",
        type=int,
        help="Steps between checkpoints.  [default: as --eval-every, at most 500]",
    ),
    GroupedOption(
        _RUN,
        "--keep-checkpoints",
        type=int,
        help="Number kept in addition to the best.  [default: 2]",
    ),
    GroupedOption(
        _RUN,
        "--require-servable",
        is_flag=True,
        default=None,
        help="Exit code 2 where vLLM serves no drafters for the target.  [default: a warning]",
    ),
    GroupedOption(
        _RUN, "--time-limit", type=float, help="Seconds; then save and leave with exit code 5."
    ),
    GroupedOption(
        _MACHINE, "--dtype", type=click.Choice(["float32", "bfloat16"]), help="[default: float32]"
    ),
    GroupedOption(
        _MACHINE,
        "--shard",
        is_flag=True,
        default=None,
        help="Shard weights and optimiser over torchrun's processes (FSDP2).",
    ),
    GroupedOption(
        _MACHINE,
        "--attention",
        type=click.Choice(get_args(AttentionName)),
        help="Attention kernel; reference is slow.  [default: auto]",
    ),
    GroupedOption(
        _MACHINE,
        "--activation-checkpointing/--no-activation-checkpointing",
        default=None,
        help="Recompute activations: less memory, more compute.",
    ),
    GroupedOption(
        _MACHINE,
        "--embedding-on-cpu/--no-embedding-on-cpu",
        default=None,
        help="Keep the target's embedding in the host's memory.",
    ),
    GroupedOption(
        _MACHINE,
        "--loss-chunk-mib",
        type=int,
        help="Size of one chunk of the loss's logits.  [default: 32]",
    ),
    GroupedOption(
        _LOSS,
        "--head-decay",
        type=float,
        help="Weight of draft step k: this^(k-1).  [default: 0.8]",
    ),
    GroupedOption(_MACHINE, "--device", help="cpu, cuda, ...  [default: a GPU if there is one]"),
)


def train_options(function: Function) -> Function:
    """Every setting of TrainConfig as a flag, under headings."""
    return with_options(_OPTIONS)(function)


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
