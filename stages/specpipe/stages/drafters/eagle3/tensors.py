"""The tensors of an artifact from those of a checkpoint, and back.

Legend: V vocabulary, H hidden size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from specpipe.schemas.drafters.eagle3 import Eagle3Shape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import EMBEDDING, LM_HEAD
from specpipe.stages.drafters.artifact import Artifact
from specpipe.stages.drafters.eagle3.layout import expected_tensors, may_share_lm_head
from specpipe.stages.drafters.parts.artifact.weights import (
    TARGETS_TOLERANCE,
    float_weights,
    written_tensors,
)
from specpipe.stages.target.head.target_tensors import TargetTensors


def artifact_tensors(
    shape: Eagle3Shape,
    model: Mapping[str, Tensor],
    vocab: Mapping[str, Tensor],
    target: TargetTensors,
    *,
    with_embedding: bool = False,
) -> dict[str, Tensor]:
    """The tensors to write: weights rounded to bfloat16, and the map where D < V.

    A drafter of another width than the target's gets its own embedding, the target's as it projects
    it; `with_embedding` gives every drafter one. Nothing else of the checkpoint is taken; what is
    missing is left for `structure` to name.
    """
    named = dict(model)
    if shape.projects_embedding and "embed_proj.weight" in model:
        named[EMBEDDING] = target.embedding_VH.float() @ model["embed_proj.weight"].float().T
    elif with_embedding:
        named[EMBEDDING] = target.embedding_VH
    return written_tensors(expected_tensors(shape, embedding=with_embedding), named, vocab)


def drafter_weights(artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
    """The model's parameters in float32: no map, no embedding, and the lm_head in any case.

    Raises ConfigError for an embedding that is not the target's, or a projection of it.
    """
    shape, where = artifact.shape, f"artifact {artifact.folder}"
    assert isinstance(shape, Eagle3Shape)
    weights = float_weights(artifact)
    own_VH = weights.pop(EMBEDDING, None)
    if own_VH is not None:
        target_VH = target.embedding_VH.float()
        if len(own_VH) != len(target_VH):
            raise ConfigError(f"{where}: {EMBEDDING} has {len(own_VH)} rows, not {len(target_VH)}")
        if shape.projects_embedding:
            weights["embed_proj.weight"] = torch.linalg.lstsq(target_VH, own_VH).solution.T
            target_VH = target_VH @ weights["embed_proj.weight"].T
        difference = (own_VH - target_VH).norm() / target_VH.norm()
        if not difference < TARGETS_TOLERANCE:
            raise ConfigError(
                f"{where} has an embedding of its own, {float(difference):.0%} away from the"
                " target's; drafters are trained here on the target's"
            )
    # An engine takes the target's where an artifact of the whole vocabulary has none.
    if LM_HEAD not in weights and may_share_lm_head(shape):
        weights[LM_HEAD] = target.lm_head_VH.float()
    return weights
