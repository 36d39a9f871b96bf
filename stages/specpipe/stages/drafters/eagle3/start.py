"""How a drafter begins: its shape, its draft vocabulary and its first weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from specpipe.schemas.records.checkpoint import DrafterShape
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.acceptance.draft_vocab import VocabMap, choose_vocab
from specpipe.stages.acceptance.draft_vocab_file import read_vocab_file
from specpipe.stages.drafters.eagle3.init_from import init_from
from specpipe.stages.drafters.eagle3.model import Eagle3
from specpipe.stages.drafters.eagle3.shape import drafter_shape
from specpipe.stages.drafters.eagle3.warm_start import warm_start
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.target.head.verifier_head import (
    final_scale,
    load_embedding,
    load_lm_head,
    load_stored_config,
)


@dataclass(frozen=True, slots=True)
class Start:
    """A drafter before its first step, float32 on the CPU."""

    shape: DrafterShape
    vocab: VocabMap
    model: Eagle3


def begin(
    config: TrainConfig,
    dump: Dump,
    aux_layers: tuple[int, ...],
    statistics: Callable[[], VocabStatistics],
) -> Start:
    """A new drafter that takes the states of `aux_layers`.

    From an artifact (`init_from`): its shape, vocabulary and weights. Else fresh, a function of the
    settings, the seed, and the statistics that the draft vocabulary is chosen by, unless it comes
    from a file; the lm_head's rows and the norm before them are the target's, with `warm_start` its
    last layers too.

    Raises ConfigError where the settings do not fit each other, the target or the files they name.
    """
    if config.init_from is not None:
        given = init_from(config, dump, aux_layers)
        model = _model(config, dump, given.shape)
        given.load_into(model)
        return Start(given.shape, given.vocab, model)
    vocab_size = dump.identity.target.vocab_size
    if config.draft_vocab_file is not None:
        vocab = read_vocab_file(Path(config.draft_vocab_file).expanduser(), vocab_size)
    else:
        vocab = choose_vocab(statistics(), config.draft_vocab_size, config.draft_vocab_by)
    target = load_stored_config(dump.target_file)
    shape = drafter_shape(target, config, aux_layers, vocab_size, vocab.size)
    torch.manual_seed(config.seed)
    model = _model(config, dump, shape)
    rows_DH = load_lm_head(dump.target_file)[vocab.target_ids_D]
    with torch.no_grad():
        if shape.projects_embedding:
            # Directions that stay apart in another space; the lm_head's rows see the same ones.
            torch.nn.init.orthogonal_(model.embed_proj.weight)
            rows_DH = rows_DH.float() @ model.embed_proj.weight.T
        else:
            # The rows expect states of the scale that the target's final norm gives them.
            model.norm.weight.copy_(final_scale(dump.target_file))
        model.lm_head.weight.copy_(rows_DH.float())
    if config.warm_start is not None:
        warm_start(model, config.warm_start, dump)
    return Start(shape, vocab, model)


def of_checkpoint(config: TrainConfig, dump: Dump, shape: DrafterShape, vocab: VocabMap) -> Start:
    """The drafter of a checkpoint, to load its weights into."""
    torch.manual_seed(config.seed)
    return Start(shape, vocab, _model(config, dump, shape))


def _model(config: TrainConfig, dump: Dump, shape: DrafterShape) -> Eagle3:
    return Eagle3(
        shape,
        load_embedding(dump.target_file),
        attention=config.attention,
        recompute=config.activation_checkpointing,
        embedding_on_cpu=config.embedding_on_cpu,
    )
