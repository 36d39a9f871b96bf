"""An artifact's weights as the drafter that is trained has them: the target fills what it shares.

Legend: V vocabulary, H hidden size.
"""

import torch
from torch import Tensor

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import EMBEDDING, LM_HEAD, may_share_lm_head
from specpipe.stages.drafters.eagle3.artifact import Artifact

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

EMBEDDING_TOLERANCE = 0.01
"""Relative difference of an artifact's embedding from the target's that its bfloat16 explains."""


def drafter_weights(
    artifact: Artifact, embedding_VH: Tensor, lm_head_VH: Tensor
) -> dict[str, Tensor]:
    """The model's parameters in float32: no map, no embedding, and the lm_head in any case.

    `embedding_VH` and `lm_head_VH` are the target's. Raises ConfigError for an embedding that is
    not the target's, or a projection of it.
    """
    shape, where = artifact.shape, f"artifact {artifact.folder}"
    for name, tensor in artifact.tensors.items():
        if name not in ("d2t", "t2d") and tensor.dtype not in _DTYPES:
            raise ConfigError(
                f"{where}: {name} is {tensor.dtype}: quantised weights without their scales; write"
                " them down as float first"
            )
    weights = {
        name: tensor.float()
        for name, tensor in artifact.tensors.items()
        if name not in ("d2t", "t2d", EMBEDDING)
    }
    own_VH = artifact.tensors.get(EMBEDDING)
    if own_VH is not None:
        target_VH = embedding_VH.float()
        if len(own_VH) != len(target_VH):
            raise ConfigError(f"{where}: {EMBEDDING} has {len(own_VH)} rows, not {len(target_VH)}")
        if shape.projects_embedding:
            weights["embed_proj.weight"] = torch.linalg.lstsq(target_VH, own_VH.float()).solution.T
            target_VH = target_VH @ weights["embed_proj.weight"].T
        difference = (own_VH.float() - target_VH).norm() / target_VH.norm()
        if not difference < EMBEDDING_TOLERANCE:
            raise ConfigError(
                f"{where} has an embedding of its own, {float(difference):.0%} away from the"
                " target's; drafters are trained here on the target's"
            )
    # An engine takes the target's where an artifact of the whole vocabulary has none.
    if LM_HEAD not in weights and may_share_lm_head(shape):
        weights[LM_HEAD] = lm_head_VH.float()
    return weights


def weight_problems(weights: dict[str, Tensor], model: torch.nn.Module) -> list[str]:
    """What is missing, unknown, not finite or of another shape than the model's parameters."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = sorted(set(expected) - set(weights))
    unknown = sorted(set(weights) - set(expected))
    odd = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
    return [
        *([f"it lacks {', '.join(missing)}"] if missing else []),
        *([f"nothing is known of {', '.join(unknown)}"] if unknown else []),
        *([f"NaN or infinity in {', '.join(odd)}"] if odd else []),
        *(
            f"{name} is {list(weights[name].shape)} instead of {list(expected[name])}"
            for name in sorted(set(expected) & set(weights))
            if weights[name].shape != expected[name]
        ),
    ]
