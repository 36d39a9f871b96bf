"""The tensors of a Medusa artifact: those of the model, and the lm_head that the heads share.

Legend: H hidden size, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from specpipe.schemas.drafters.medusa import MedusaShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import LM_HEAD
from specpipe.stages.drafters.artifact import Artifact
from specpipe.stages.drafters.parts.artifact.weights import float_weights
from specpipe.stages.target.head.target_tensors import TargetTensors

Sizes = dict[str, tuple[int, ...]]

HEAD_TOLERANCE = 0.01
"""Relative difference of a shared lm_head from the target's that its bfloat16 explains."""


def model_sizes(shape: MedusaShape) -> Sizes:
    """Of the model's parameters."""
    H, V = shape.target_hidden_size, shape.vocab_size
    sizes: Sizes = {}
    for head in range(shape.num_heads):
        for layer in range(shape.num_layers):
            name = f"blocks.{head}.layers.{layer}"
            sizes[f"{name}.weight"] = (H, H)
            if shape.block_bias:
                sizes[f"{name}.bias"] = (H,)
        if shape.own_lm_head:
            sizes[f"lm_heads.{head}.weight"] = (V, H)
    return sizes


def artifact_sizes(shape: MedusaShape) -> Sizes:
    """Of the artifact's tensors: vLLM gives a drafter without a lm_head none of the target's."""
    shared: Sizes = {LM_HEAD: (shape.vocab_size, shape.target_hidden_size)}
    return model_sizes(shape) | ({} if shape.own_lm_head else shared)


def artifact_tensors(
    shape: MedusaShape, model: Mapping[str, Tensor], target: TargetTensors
) -> dict[str, Tensor]:
    """bfloat16, but for the target's own lm_head, which is copied; what the model lacks is left
    for `structure` to name."""
    tensors = {
        name: model[name].to(torch.bfloat16).contiguous()
        for name in model_sizes(shape)
        if name in model
    }
    if not shape.own_lm_head:
        tensors[LM_HEAD] = target.lm_head_VH.contiguous()
    return tensors


def model_weights(artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
    """Raises ConfigError where the shared lm_head is not the target's: training takes that."""
    assert isinstance(artifact.shape, MedusaShape)
    weights = float_weights(artifact)
    if not artifact.shape.own_lm_head and LM_HEAD in weights:
        own_VH, target_VH = weights.pop(LM_HEAD), target.lm_head_VH.float()
        difference = (own_VH - target_VH).norm() / target_VH.norm()
        if not difference < HEAD_TOLERANCE:
            raise ConfigError(
                f"artifact {artifact.folder} has a lm_head of its own for all heads,"
                f" {float(difference):.0%} away from the target's; drafters with one lm_head are"
                " trained here on the target's"
            )
    return weights
