"""The norm of several layers' keys at once, which DFlash drafters are served by.

vLLM hands the operator `rms_norm` the weights of all layers, [layers, head_dim], with inputs
[layers, ...]. The CUDA kernel takes each layer's own row; the CPU kernel of vLLM 0.32 takes the
first one for all, without a word. Drafts are then still proposed, but not those of the drafter.
"""

from collections.abc import Callable
from typing import Any

Norm = Callable[[Any, Any, Any, float], None]
"""vLLM's signature: output, input, weight, epsilon."""


def repair() -> bool:
    """Replace the operator where it is wrong; False where it is right."""
    from vllm import _custom_ops

    if not norms_wrongly(_custom_ops.rms_norm):
        return False
    _custom_ops.rms_norm = layer_by_layer(_custom_ops.rms_norm)
    return True


def layer_by_layer(norm: Norm) -> Norm:
    """`norm`, called once per row of a weight that has several."""

    def rms_norm(out: Any, input: Any, weight: Any, epsilon: float) -> None:
        if weight is None or weight.dim() == 1:
            norm(out, input, weight, epsilon)
            return
        for rows in zip(out, input, weight, strict=True):
            norm(*rows, epsilon)

    return rms_norm


def norms_wrongly(norm: Norm) -> bool:
    """Whether `norm` takes one layer's weight for another's: tried on two layers of one key."""
    import torch

    weight = torch.tensor([[1.0], [3.0]]).repeat(1, 32)
    keys = torch.ones(2, 1, 1, 32)
    output = torch.zeros_like(keys)
    norm(output, keys, weight, 0.0)
    return not torch.allclose(output[:, 0, 0], weight)
