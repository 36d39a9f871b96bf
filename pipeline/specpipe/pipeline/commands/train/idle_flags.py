"""Flags of `specpipe train` that could do nothing beside the other settings."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from specpipe.schemas.drafters.registry import KINDS, settings_fields
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import TrainConfig


def _hybrid(config: TrainConfig) -> bool:
    return "lk_hybrid" in config.losses


def _muon(config: TrainConfig) -> bool:
    return config.optimizer == "muon"


def _fresh(config: TrainConfig) -> bool:
    return config.init_from is None


def _chooses_vocab(config: TrainConfig) -> bool:
    return _fresh(config) and config.drafter.has_draft_vocab and config.draft_vocab_file is None


SomeConfig = TypeVar("SomeConfig", bound=TrainConfig)
Counts = Mapping[str, tuple[Callable[[SomeConfig], bool], str]]
"""When a setting counts, and in words what it is for; others always count."""

OF_TRAINING: Counts[TrainConfig] = {
    "muon_learning_rate": (_muon, "optimizer muon"),
    "muon_momentum": (_muon, "optimizer muon"),
    "muon_weight_decay": (_muon, "optimizer muon"),
    "wsd_decay": (lambda c: c.schedule == "wsd", "schedule wsd"),
    "eta": (_hybrid, "loss lk_hybrid"),
    "lambda_scope": (_hybrid, "loss lk_hybrid"),
    "lambda_source": (
        lambda c: _hybrid(c) and c.lambda_scope == "head",
        "loss lk_hybrid with lambda_scope head",
    ),
    "head_decay": (
        lambda c: c.head_weights != "dpace",
        "head_weights static and survival",
    ),
    "dpace_smoothing": (lambda c: c.head_weights == "dpace", "head_weights dpace"),
    "num_epochs": (lambda c: c.max_steps is None, "runs without max_steps"),
    "batch_tokens": (lambda c: c.batch_size is None, "steps without batch_size"),
    "held_out_fraction": (lambda c: c.eval_dump is None, "runs without eval_dump"),
    "log_project": (lambda c: bool(c.log), "runs with log"),
    "log_name": (lambda c: bool(c.log), "runs with log"),
    "shard": (lambda _: "WORLD_SIZE" in os.environ, "the processes of torchrun"),
    **{
        name: (_fresh, "drafters without init_from, whose artifact decides it")
        for name, kinds in settings_fields().items()
        if not any(name in KINDS[kind].settings.of_training for kind in kinds)
    },
    "fresh_layer": (
        lambda c: _fresh(c) and c.warm_start is None,
        "drafters without init_from and warm_start",
    ),
    "draft_vocab_by": (
        _chooses_vocab,
        "draft vocabularies that are chosen, without draft_vocab_file and init_from",
    ),
}


def refuse_idle(
    config: SomeConfig, flags: Iterable[str], counts: Counts[SomeConfig] = OF_TRAINING
) -> None:
    """Raise ConfigError naming every one of the given flags that has no effect.

    In a file such a setting may stand: it may serve several runs, and a job's says everything.
    """
    idle = [name for name in flags if name in counts and not counts[name][0](config)]
    if idle:
        raise ConfigError(
            "; ".join(
                f"{name} is for {counts[name][1]}: leave --{name.replace('_', '-')} out"
                for name in idle
            )
        )
