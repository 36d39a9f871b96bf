"""An artifact's weights: those that are written, and those that a model takes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import EMBEDDING
from specpipe.stages.drafters.artifact import Artifact

_OWN_EMBEDDING = "its embedding is its own, and drafters are trained here on the target's"

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


TARGETS_TOLERANCE = 0.01
"""Relative difference of an artifact's copy of a tensor from the target's own that its bfloat16
explains."""

Expected = Mapping[str, tuple[tuple[int, ...], str]]
"""Size and kind of tensors by name; see `Architecture.expected_tensors`."""


def written_tensors(
    expected: Expected, weights: Mapping[str, Tensor], vocab: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The expected tensors that there are: weights rounded to bfloat16, and the vocabulary map.

    What is missing is left for level `structure` to name.
    """
    tensors = {}
    for name, (_, kind) in expected.items():
        source = vocab if kind != "float" else weights
        if name in source:
            tensor = source[name]
            tensors[name] = tensor.to(torch.bfloat16).contiguous() if kind == "float" else tensor
    return tensors


def float_weights(artifact: Artifact) -> dict[str, Tensor]:
    """Its tensors in float32, but for the vocabulary map; raises ConfigError for others."""
    for name, tensor in artifact.tensors.items():
        if name not in ("d2t", "t2d") and tensor.dtype not in _DTYPES:
            raise ConfigError(
                f"artifact {artifact.folder}: {name} is {tensor.dtype}: quantised weights without"
                " their scales; write them down as float first"
            )
    return {
        name: tensor.float()
        for name, tensor in artifact.tensors.items()
        if name not in ("d2t", "t2d")
    }


def weight_problems(weights: dict[str, Tensor], model: torch.nn.Module) -> list[str]:
    """What is missing, unknown, not finite or of another shape than the model's parameters."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = sorted(set(expected) - set(weights))
    unknown = sorted(set(weights) - set(expected) - {EMBEDDING})
    odd = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
    return [
        *([f"it lacks {', '.join(missing)}"] if missing else []),
        *([f"nothing is known of {', '.join(unknown)}"] if unknown else []),
        *([_OWN_EMBEDDING] if EMBEDDING in set(weights) - set(expected) else []),
        *([f"NaN or infinity in {', '.join(odd)}"] if odd else []),
        *(
            f"{name} is {list(weights[name].shape)} instead of {list(expected[name])}"
            for name in sorted(set(expected) & set(weights))
            if weights[name].shape != expected[name]
        ),
    ]
