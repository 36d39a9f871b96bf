"""The weights of an artifact as the trainer's code takes them."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from specpipe.schemas.records.artifact import EMBEDDING
from specpipe.schemas.records.checkpoint import DrafterShape
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.drafters.eagle3.artifact import Artifact
from specpipe.stages.drafters.eagle3.model_weights import drafter_weights
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.verifier_head import load_embedding, load_lm_head


@dataclass(frozen=True, slots=True)
class ArtifactWeights:
    """With its own embedding, where it has one, no projection of the target's is taken."""

    path: Path
    shape: DrafterShape
    vocab: VocabMap
    model: dict[str, Tensor]
    num_heads: int
    embedding_VH: Tensor | None


def artifact_weights(artifact: Artifact, dump: Dump, num_heads: int) -> ArtifactWeights:
    """Raises ConfigError where the artifact's embedding is not the target's, or a projection."""
    model = drafter_weights(
        artifact, load_embedding(dump.target_file), load_lm_head(dump.target_file)
    )
    own_VH = artifact.tensors.get(EMBEDDING)
    if own_VH is not None:
        model.pop("embed_proj.weight", None)
    return ArtifactWeights(
        artifact.folder, artifact.shape, artifact.vocab(), model, num_heads, own_VH
    )
