"""The tensors of an artifact from those of a checkpoint, and back.

Legend: V vocabulary, H hidden size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from specpipe.schemas.drafters.peagle import PeagleShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import EMBEDDING, LM_HEAD
from specpipe.stages.drafters.artifact import Artifact
from specpipe.stages.drafters.parts.artifact.weights import (
    TARGETS_TOLERANCE,
    float_weights,
    written_tensors,
)
from specpipe.stages.drafters.peagle.layout import expected_tensors, may_share_lm_head
from specpipe.stages.target.head.target_tensors import TargetTensors

MASK_EMBEDDING = "mask_embedding"
"""The model's name of the embedding's trained row."""


def artifact_tensors(
    shape: PeagleShape,
    model: Mapping[str, Tensor],
    vocab: Mapping[str, Tensor],
    target: TargetTensors,
) -> dict[str, Tensor]:
    """The tensors to write: weights rounded to bfloat16, the map where D < V, and the target's
    embedding with the row that was trained.

    Nothing else of the checkpoint is taken; what is missing is left for `structure` to name.
    """
    named = dict(model)
    if MASK_EMBEDDING in named:
        table_VH = target.embedding_VH.to(torch.bfloat16, copy=True)
        table_VH[shape.mask_token] = named[MASK_EMBEDDING].to(table_VH)
        named[EMBEDDING] = table_VH
    return written_tensors(expected_tensors(shape), named, vocab)


def drafter_weights(artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
    """The model's parameters in float32: no map, and the lm_head in any case.

    An embedding of its own that is not the target's, but for the mask token's row, stays among
    them: no drafter here is trained on that, but any is computed with it.
    """
    shape = artifact.shape
    assert isinstance(shape, PeagleShape)
    weights = float_weights(artifact)
    target_VH = target.embedding_VH.float()
    own_VH = weights.pop(EMBEDDING, target_VH)
    if own_VH.shape != target_VH.shape:
        raise ConfigError(
            f"artifact {artifact.folder}: {EMBEDDING} is {list(own_VH.shape)}, the target's"
            f" {list(target_VH.shape)}"
        )
    weights[MASK_EMBEDDING] = own_VH[shape.mask_token].clone()
    difference_VH = own_VH - target_VH
    difference_VH[shape.mask_token] = 0
    if not difference_VH.norm() / target_VH.norm() < TARGETS_TOLERANCE:
        weights[EMBEDDING] = own_VH
    if LM_HEAD not in weights and may_share_lm_head(shape):
        weights[LM_HEAD] = target.lm_head_VH.float()
    return weights
