"""Going on from an artifact: its weights under the model's names, each accounted for."""

from dataclasses import dataclass

from torch import Tensor

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.checkpoint import DrafterShape
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.drafters.eagle3.artifact import OfTarget, read_artifact
from specpipe.stages.drafters.eagle3.model import Eagle3
from specpipe.stages.drafters.eagle3.model_weights import drafter_weights, weight_problems
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.verifier_head import load_embedding, load_lm_head


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
        problems = weight_problems(self.weights, model)
        if problems:
            raise ConfigError(
                f"{self.where} is not the drafter that its config describes: {'; '.join(problems)}"
            )
        model.load_state_dict(self.weights)


def init_from(config: TrainConfig, dump: Dump, aux_layers: tuple[int, ...]) -> Given:
    """The artifact that the settings name, for the dump's target and a run on `aux_layers`.

    Raises ConfigError where it is of another target or of other layers, where a setting asks for
    another drafter, or where it is broken.
    """
    assert config.init_from is not None
    target = dump.identity.target
    artifact = read_artifact(
        config.init_from, OfTarget(target.vocab_size, target.hidden_size, aux_layers)
    )
    where = f"artifact {artifact.folder}"
    if artifact.layer_ids not in (None, aux_layers):
        raise ConfigError(
            f"{where} takes the layers {_listed(artifact.shape.aux_layers)}, the run those of"
            f" {_listed(aux_layers)}; a dump must hold them, and --layers may choose among its own"
        )
    _same_settings(config, artifact.shape, where)
    vocab = artifact.vocab()
    weights = drafter_weights(
        artifact, load_embedding(dump.target_file), load_lm_head(dump.target_file)
    )
    return Given(where, artifact.shape, vocab, weights)


def _same_settings(config: TrainConfig, shape: DrafterShape, where: str) -> None:
    """A setting that was set must be the artifact's."""
    for name in sorted(config.model_fields_set & DrafterShape.model_fields.keys()):
        asked = getattr(config, name)
        if asked is not None and asked != getattr(shape, name):
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


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
