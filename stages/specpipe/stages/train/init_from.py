"""Going on from an artifact: its weights under the model's names, every one of them accounted for.

Legend: V vocabulary, H hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.schemas.artifact import EMBEDDING
from specpipe.schemas.checkpoint import DrafterShape
from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.train_config import TrainConfig
from specpipe.stages.drafter.eagle3 import Eagle3
from specpipe.stages.drafter.vocab import VocabMap
from specpipe.stages.drafter.vocab_file import vocab_map
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head import load_embedding, load_lm_head
from specpipe.stages.train.artifact import Artifact, read_artifact

EMBEDDING_TOLERANCE = 0.01
"""Relative difference of an artifact's embedding from the target's that its bfloat16 explains."""


@dataclass(frozen=True, slots=True)
class Given:
    """What an artifact brings."""

    where: str
    shape: DrafterShape
    vocab: VocabMap
    weights: dict[str, Tensor]
    """float32"""

    def load_into(self, model: Eagle3) -> None:
        """Raises ConfigError naming what is missing, unknown, not finite or of another shape."""
        weights = self.weights
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        missing = sorted(set(expected) - set(weights))
        unknown = sorted(set(weights) - set(expected))
        odd = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
        problems = [
            *([f"it lacks {', '.join(missing)}"] if missing else []),
            *([f"nothing is known of {', '.join(unknown)}"] if unknown else []),
            *([f"NaN or infinity in {', '.join(odd)}"] if odd else []),
            *(
                f"{name} is {list(weights[name].shape)} instead of {list(expected[name])}"
                for name in sorted(set(expected) & set(weights))
                if weights[name].shape != expected[name]
            ),
        ]
        if problems:
            raise ConfigError(
                f"{self.where} is not the drafter that its config describes: {'; '.join(problems)}"
            )
        model.load_state_dict(weights)


def init_from(config: TrainConfig, dump: Dump, aux_layers: tuple[int, ...]) -> Given:
    """The artifact that the settings name, for the dump's target and a run on `aux_layers`.

    Raises ConfigError where it is of another target or of other layers, where a setting asks for
    another drafter, or where it is broken.
    """
    assert config.init_from is not None
    target = dump.identity.target
    artifact = read_artifact(config.init_from, aux_layers, target.vocab_size, target.hidden_size)
    where = f"artifact {artifact.folder}"
    if artifact.layer_ids not in (None, aux_layers):
        raise ConfigError(
            f"{where} takes the layers {_listed(artifact.shape.aux_layers)}, the run those of"
            f" {_listed(aux_layers)}; a dump must hold them, and --layers may choose among its own"
        )
    _same_settings(config, artifact.shape, where)
    vocab = _vocab(artifact, target.vocab_size)
    return Given(where, artifact.shape, vocab, _weights(artifact, dump))


def _same_settings(config: TrainConfig, shape: DrafterShape, where: str) -> None:
    """A setting that is not the default must be the artifact's."""
    for name, field in TrainConfig.model_fields.items():
        asked = getattr(config, name)
        if name not in DrafterShape.model_fields or asked == field.default:
            continue
        if asked != getattr(shape, name):
            raise ConfigError(
                f"{name} {asked!r} is not that of {where}, {getattr(shape, name)!r}; --init-from"
                " takes the artifact's shape as it is"
            )
    if config.rope_theta not in (None, shape.rope_parameters["rope_theta"]):
        raise ConfigError(f"rope_theta {config.rope_theta} is not that of {where}")
    if shape.sliding_window is not None and shape.sliding_window < config.num_heads:
        raise ConfigError(
            f"num_heads {config.num_heads} does not fit into the sliding_window of {where},"
            f" {shape.sliding_window}"
        )


def _vocab(artifact: Artifact, vocab_size: int) -> VocabMap:
    tensors, size = artifact.tensors, artifact.shape.draft_vocab_size
    where = f"artifact {artifact.folder}"
    if "d2t" not in tensors:
        if size != vocab_size:
            raise ConfigError(
                f"{where} has a draft vocabulary of {size}, but no d2t that says which tokens"
            )
        return VocabMap(torch.arange(vocab_size), vocab_size)
    try:
        vocab = vocab_map({n: tensors[n] for n in ("d2t", "t2d") if n in tensors}, vocab_size)
    except IntegrityError as error:
        raise ConfigError(f"{where}: {error}") from None
    if vocab.size != size:
        raise ConfigError(f"{where}: d2t names {vocab.size} tokens, its config {size}")
    return vocab


def _weights(artifact: Artifact, dump: Dump) -> dict[str, Tensor]:
    """The model's parameters in float32: no map, no embedding, and the lm_head in any case."""
    shape, where = artifact.shape, f"artifact {artifact.folder}"
    weights = {
        name: tensor.float()
        for name, tensor in artifact.tensors.items()
        if name not in ("d2t", "t2d", EMBEDDING)
    }
    own_VH = artifact.tensors.get(EMBEDDING)
    if own_VH is not None:
        target_VH = load_embedding(dump.target_file).float()
        if len(own_VH) != len(target_VH):
            raise ConfigError(f"{where}: {EMBEDDING} has {len(own_VH)} rows, not {len(target_VH)}")
        if shape.projects_embedding:
            weights["embed_proj.weight"] = torch.linalg.lstsq(target_VH, own_VH.float()).solution.T
            target_VH = target_VH @ weights["embed_proj.weight"].T
        difference = (own_VH.float() - target_VH).norm() / target_VH.norm()
        if not difference < EMBEDDING_TOLERANCE:
            raise ConfigError(
                f"{where} has an embedding of its own, {float(difference):.0%} away from the"
                " target's; drafters are trained here on the target's"
            )
    # An engine takes the target's where an artifact of the whole vocabulary has none.
    whole = shape.draft_vocab_size == shape.vocab_size and not shape.projects_embedding
    if "lm_head.weight" not in weights and whole:
        weights["lm_head.weight"] = load_lm_head(dump.target_file).float()
    return weights


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
