"""How a drafter begins: its shape, its draft vocabulary and its first weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.acceptance.draft_vocab import VocabMap, choose_vocab
from specpipe.stages.acceptance.draft_vocab_file import read_vocab_file
from specpipe.stages.drafters.contract import DrafterModel, Runtime
from specpipe.stages.drafters.init_from import init_from
from specpipe.stages.drafters.registry import architecture, drafter_kind
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.target.head.target_tensors import StoredTarget, TargetTensors


@dataclass(frozen=True, slots=True)
class Start:
    """A drafter before its first step, float32 on the CPU."""

    shape: DrafterShape
    vocab: VocabMap
    model: DrafterModel


def begin(
    config: TrainConfig,
    dump: Dump,
    aux_layers: tuple[int, ...],
    statistics: Callable[[], VocabStatistics],
) -> Start:
    """A new drafter that takes the states of `aux_layers`.

    From an artifact (`init_from`): its shape, vocabulary and weights. Else fresh, a function of the
    settings, the seed, and the statistics that the draft vocabulary is chosen by, unless it comes
    from a file.

    Raises ConfigError where the settings do not fit each other, the target or the files they name.
    """
    target = StoredTarget(dump.target_file)
    if config.init_from is not None:
        given = init_from(config, dump, aux_layers, target)
        model = _model(config, target, given.shape, given.vocab)
        given.load_into(model)
        return Start(given.shape, given.vocab, model)
    kind, vocab_size = architecture(config.drafter.kind), dump.identity.target.vocab_size
    if config.warm_start is not None and not kind.takes_warm_start:
        raise ConfigError(
            f"warm_start: a drafter {kind.name} does not begin with the target's last layers; leave"
            " it out"
        )
    if not config.drafter.has_draft_vocab:
        for name in ("draft_vocab_size", "draft_vocab_file"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"{name}: a drafter {kind.name} drafts from the whole vocabulary; leave it out"
                )
    if config.draft_vocab_file is not None:
        vocab = read_vocab_file(Path(config.draft_vocab_file).expanduser(), vocab_size)
    elif config.drafter.has_draft_vocab:
        vocab = choose_vocab(statistics(), config.draft_vocab_size, config.draft_vocab_by)
    else:
        vocab = VocabMap(torch.arange(vocab_size), vocab_size)
    shape = kind.make_shape(config, target.config, aux_layers, vocab_size, vocab.size)
    shape = kind.fitted_to_text(shape, config, statistics)
    torch.manual_seed(config.seed)
    model = _model(config, target, shape, vocab)
    kind.initialise(model, config, dump, target, vocab.target_ids_D)
    return Start(shape, vocab, model)


def of_checkpoint(config: TrainConfig, dump: Dump, shape: DrafterShape, vocab: VocabMap) -> Start:
    """The drafter of a checkpoint, to load its weights into."""
    torch.manual_seed(config.seed)
    target = StoredTarget(dump.target_file)
    return Start(shape, vocab, _model(config, target, shape, vocab))


def _model(
    config: TrainConfig, target: TargetTensors, shape: DrafterShape, vocab: VocabMap
) -> DrafterModel:
    runtime = Runtime(
        config.attention,
        config.activation_checkpointing,
        config.embedding_on_cpu,
        config.drafter,
    )
    return drafter_kind(shape).build(shape, target, vocab.target_ids_D, runtime)
