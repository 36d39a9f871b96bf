"""An artifact's tensors against a checkpoint's: are they its weights, rounded?"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from specpipe.schemas.errors import ValidationError
from specpipe.schemas.records.artifact import EMBEDDING, LM_HEAD, MODEL_TENSORS_FILE
from specpipe.stages.drafters.parts.artifact.layer_config import own_name
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.runs.checkpoint import Checkpoint
from specpipe.stages.target.head.target_tensors import TargetTensors
from specpipe.stages.untrusted.tensors import load_tensors

ROUNDING = 2**-7
"""Relative distance of neighbouring numbers of bfloat16."""


def stored_tensors(artifact: Path) -> dict[str, Tensor]:
    """The tensors of an artifact's folder, under our names."""
    path = artifact / MODEL_TENSORS_FILE
    return {
        own_name(name): tensor
        for name, tensor in load_tensors(path, str(path), ValidationError).items()
    }


def weight_problems(
    stored: Mapping[str, Tensor], checkpoint: Checkpoint, target: TargetTensors
) -> list[str]:
    """Every tensor of the artifact (under our names) that is not what an export would write.

    A lm_head may be left to the target.
    """
    shape = checkpoint.shape
    expected = drafter_kind(shape).artifact_tensors(
        shape,
        checkpoint.model,
        checkpoint.vocab.tensors(),
        target,
        with_embedding=EMBEDDING in stored,
    )
    if LM_HEAD not in stored:
        expected.pop(LM_HEAD, None)
    problems = [f"tensor {name} is missing" for name in sorted(set(expected) - set(stored))]
    problems += [
        f"tensor {name} is not the checkpoint's" for name in sorted(set(stored) - set(expected))
    ]
    for name in sorted(set(expected) & set(stored)):
        ours, theirs = stored[name], expected[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            problems.append(
                f"tensor {name} is {ours.dtype} {list(ours.shape)}, the checkpoint's is"
                f" {theirs.dtype} {list(theirs.shape)}"
            )
        elif num := _others(
            ours,
            theirs,
            is_product=name == EMBEDDING and getattr(shape, "projects_embedding", False),
        ):
            problems.append(
                f"tensor {name} is not the checkpoint's as an export writes it: {num:,} of"
                f" {ours.numel():,} numbers differ"
            )
    return problems


def _others(ours: Tensor, theirs: Tensor, *, is_product: bool) -> int:
    """How many numbers differ; of a product of matrices, by more than the last bit.

    A product's sums may be taken in another order each time.
    """
    if not is_product:
        return int((ours != theirs).sum())
    ours, theirs = ours.float(), theirs.float()
    allowed = ROUNDING * torch.maximum(ours.abs(), theirs.abs())
    return int((~((ours - theirs).abs() <= allowed + 1e-6 * theirs.abs().max())).sum())
