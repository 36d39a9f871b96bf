"""The tensors of an artifact from those of a checkpoint, and back.

Legend: V vocabulary, D draft vocabulary, H hidden size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from specpipe.schemas.drafters.block import BlockShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import EMBEDDING, LM_HEAD
from specpipe.stages.drafters.artifact import Artifact
from specpipe.stages.drafters.parts.artifact.layer_tensors import (
    Sizes,
    decoder_layer_tensors,
    map_tensors,
)
from specpipe.stages.drafters.parts.artifact.weights import (
    TARGETS_TOLERANCE,
    float_weights,
    written_tensors,
)
from specpipe.stages.target.head.target_tensors import TargetTensors

Expected = dict[str, tuple[tuple[int, ...], str]]


def may_share_lm_head(shape: BlockShape) -> bool:
    return shape.draft_vocab_size == shape.vocab_size


def expected_tensors(
    shape: BlockShape, more: Sizes, *, embedding: bool = False, lm_head: bool | None = None
) -> Expected:
    """Those of the blocks, of `more`, and of the map; lm_head None: where one must be stored."""
    H = shape.hidden_size
    sizes: Sizes = {
        "fc.weight": (H, shape.num_aux * shape.target_hidden_size),
        "hidden_norm.weight": (H,),
        "norm.weight": (H,),
    }
    for number in range(shape.num_layers):
        sizes |= decoder_layer_tensors(shape, number, width=H)
    if lm_head is None:
        lm_head = shape.own_lm_head or not may_share_lm_head(shape)
    if lm_head:
        sizes[LM_HEAD] = (shape.draft_vocab_size, H)
    if embedding:
        sizes[EMBEDDING] = (shape.vocab_size, H)
    return {name: (size, "float") for name, size in (sizes | more).items()} | map_tensors(shape)


def artifact_tensors(
    expected: Expected,
    model: Mapping[str, Tensor],
    vocab: Mapping[str, Tensor],
    target: TargetTensors,
) -> dict[str, Tensor]:
    """The tensors to write: weights rounded to bfloat16, and the map where D < V.

    A frozen head and an embedding are the target's. What is missing is left for `structure` to
    name.
    """
    named = dict(model)
    if EMBEDDING in expected:
        named[EMBEDDING] = target.embedding_VH
    if LM_HEAD in expected and LM_HEAD not in named:
        rows_VH = target.lm_head_VH
        named[LM_HEAD] = rows_VH[target_ids(vocab["d2t"])] if "d2t" in expected else rows_VH
    return written_tensors(expected, named, vocab)


def target_ids(d2t_D: Tensor) -> Tensor:
    """The target's ids of the draft vocabulary, from offsets."""
    return d2t_D + torch.arange(len(d2t_D))


def model_weights(artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
    """The model's parameters in float32; raises ConfigError for an embedding that is not the
    target's, or a frozen head that is not."""
    shape, where = artifact.shape, f"artifact {artifact.folder}"
    assert isinstance(shape, BlockShape)
    weights = float_weights(artifact)
    own_VH = weights.pop(EMBEDDING, None)
    if own_VH is not None:
        _check_targets(f"{where}: its embedding", own_VH, target.embedding_VH)
    if shape.own_lm_head:
        if LM_HEAD not in weights and may_share_lm_head(shape):
            weights[LM_HEAD] = target.lm_head_VH.float()
        return weights
    head_DH = weights.pop(LM_HEAD, None)
    if head_DH is not None:
        rows_DH = target.lm_head_VH[artifact.vocab().target_ids_D]
        _check_targets(f"{where}: its lm_head", head_DH, rows_DH)
    return weights


def _check_targets(what: str, own: Tensor, targets: Tensor) -> None:
    targets = targets.float()
    if own.shape != targets.shape:
        raise ConfigError(f"{what} is {list(own.shape)}, the target's {list(targets.shape)}")
    difference = (own - targets).norm() / targets.norm()
    if not difference < TARGETS_TOLERANCE:
        raise ConfigError(
            f"{what} is its own, {float(difference):.0%} away from the target's; drafters of this"
            " kind are trained here on the target's"
        )
