"""Going on from an artifact: its weights under the model's names, each accounted for."""

from dataclasses import dataclass

from torch import Tensor, nn

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.drafters.artifact import OfTarget
from specpipe.stages.drafters.parts.artifact.weights import weight_problems
from specpipe.stages.drafters.reading import read_artifact
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget


@dataclass(frozen=True, slots=True)
class Given:
    """The drafter that an artifact holds."""

    where: str
    shape: DrafterShape
    vocab: VocabMap
    weights: dict[str, Tensor]
    """float32"""

    def load_into(self, model: nn.Module) -> None:
        """Raises ConfigError naming what is missing, unknown, not finite or of another shape."""
        problems = weight_problems(self.weights, model)
        if problems:
            raise ConfigError(
                f"{self.where} is not the drafter that its config describes: {'; '.join(problems)}"
            )
        model.load_state_dict(self.weights)


def init_from(
    config: TrainConfig, dump: Dump, aux_layers: tuple[int, ...], target: StoredTarget
) -> Given:
    """The artifact that the settings name, for the dump's target and a run on `aux_layers`.

    Raises ConfigError where it is of another target or of other layers, where a setting asks for
    another drafter, or where it is broken.
    """
    assert config.init_from is not None
    identity = dump.identity.target
    artifact = read_artifact(
        config.init_from,
        OfTarget(identity.vocab_size, identity.hidden_size, _undeclared(config, dump, aux_layers)),
    )
    where = f"artifact {artifact.folder}"
    if artifact.shape.architecture != config.drafter.kind:
        raise ConfigError(
            f"{where} is a drafter {artifact.shape.architecture}, the run's is"
            f" {config.drafter.kind}; give --drafter {artifact.shape.architecture}"
        )
    if artifact.shape.aux_layers != aux_layers:
        raise ConfigError(
            f"{where} takes the layers {_listed(artifact.shape.aux_layers)}, the run those of"
            f" {_listed(aux_layers)}; a dump must hold them, and --layers may choose among its own"
        )
    _same_settings(config, artifact.shape, where)
    weights = drafter_kind(artifact.shape).model_weights(artifact, target)
    return Given(where, artifact.shape, artifact.vocab(), weights)


def _undeclared(config: TrainConfig, dump: Dump, aux_layers: tuple[int, ...]) -> tuple[int, ...]:
    """The layers of an artifact that names none: those that a person chose, else what its own
    trainer and engines take."""
    if config.layers is not None:
        return aux_layers
    try:
        return config.drafter.undeclared_layers(dump.identity.target.num_layers)
    except ValueError:
        return aux_layers


def _same_settings(config: TrainConfig, shape: DrafterShape, where: str) -> None:
    """A setting that was set must be the artifact's."""
    given = config.flat()
    wanted = {name: given[name] for name in config.flat_fields_set if name in given}
    for name, asked, own in shape.differences(wanted):
        raise ConfigError(
            f"{name} {asked!r} is not that of {where}, {own!r}; --init-from takes the artifact's"
            " shape as it is"
        )
    if problem := shape.num_heads_problem(config.num_heads):
        raise ConfigError(f"{where}: {problem}")


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
