"""The weights of an artifact as the trainer's code takes them."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.records.artifact import EMBEDDING
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.drafters.artifact import Artifact
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.target.head.target_tensors import TargetTensors


@dataclass(frozen=True, slots=True)
class ArtifactWeights:
    """The weights of an artifact, its own embedding included if it has one."""

    path: Path
    shape: DrafterShape
    vocab: VocabMap
    model: dict[str, Tensor]
    num_heads: int


def artifact_weights(artifact: Artifact, target: TargetTensors, num_heads: int) -> ArtifactWeights:
    """Raises ConfigError where the trainer's code does not compute what the artifact says."""
    model = drafter_kind(artifact.shape).model_weights(artifact, target)
    if EMBEDDING in artifact.tensors:
        model[EMBEDDING] = artifact.tensors[EMBEDDING]
    return ArtifactWeights(artifact.folder, artifact.shape, artifact.vocab(), model, num_heads)
