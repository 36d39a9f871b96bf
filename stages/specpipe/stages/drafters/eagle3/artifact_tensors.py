"""The tensors of an artifact, from those of a checkpoint.

Legend: V vocabulary, H hidden size.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import (
    EMBEDDING,
    LM_HEAD,
    expected_tensors,
    may_share_lm_head,
)
from specpipe.schemas.records.checkpoint import DrafterShape


def artifact_tensors(
    shape: DrafterShape,
    model: Mapping[str, Tensor],
    vocab: Mapping[str, Tensor],
    embedding: Callable[[], Tensor],
    *,
    with_embedding: bool = False,
) -> dict[str, Tensor]:
    """The tensors to write: weights rounded to bfloat16, and the map where D < V.

    A drafter of another width than the target's gets its own embedding, the target's (`embedding`,
    [V, target's width]) as it projects it; `with_embedding` gives every drafter one. Nothing else
    of the checkpoint is taken; what is missing is left for `structure` to name.
    """
    named = dict(model)
    if shape.projects_embedding and "embed_proj.weight" in model:
        named[EMBEDDING] = embedding().float() @ model["embed_proj.weight"].float().T
    elif with_embedding:
        named[EMBEDDING] = embedding()
    tensors = {}
    for name, (_, kind) in expected_tensors(shape, embedding=with_embedding).items():
        source = vocab if kind != "float" else named
        if name in source:
            tensor = source[name]
            tensors[name] = tensor.to(torch.bfloat16).contiguous() if kind == "float" else tensor
    return tensors


def without_lm_head(
    shape: DrafterShape, tensors: Mapping[str, Tensor], target_VH: Tensor
) -> dict[str, Tensor]:
    """The tensors without the lm_head, which the engine then takes from the target.

    Raises ConfigError unless it is the target's (`target_VH`), to the bit as it is stored.
    """
    if not may_share_lm_head(shape):
        raise ConfigError(
            f"the lm_head cannot be left out: it has {shape.draft_vocab_size} rows of"
            f" {shape.hidden_size}, the target's {shape.vocab_size} of {shape.target_hidden_size}"
        )
    if not torch.equal(tensors[LM_HEAD], target_VH.to(tensors[LM_HEAD].dtype)):
        raise ConfigError("the lm_head cannot be left out: it was trained, and is not the target's")
    return {name: tensor for name, tensor in tensors.items() if name != LM_HEAD}
