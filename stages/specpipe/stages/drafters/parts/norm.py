"""RMSNorm.

Legend: H size of what is normed.
"""

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight in float32 (float64 for float64), whatever the dtype that comes in."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Normed.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return out


class ZeroCentredNorm(RMSNorm):
    """x / rms(x) * (1 + weight), with a weight that begins at 0."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Normed.apply(x, 1 + self.weight, self.eps)  # type: ignore[no-untyped-call]
        return out


class _Normed(torch.autograd.Function):
    """RMSNorm as an autograd function that stores its input and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        wide = x.to(weight_H.dtype)
        scale_1 = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight_H, scale_1)
        return (wide * scale_1).mul_(weight_H)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (dout,) = grad_outputs
        x, weight_H, scale_1 = ctx.saved_tensors
        normed = x.to(weight_H.dtype) * scale_1
        dweight_H = (dout * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, dweight_H, None
        dnormed = dout * weight_H
        along_1 = (dnormed * normed).mean(-1, keepdim=True)
        dx = dnormed.sub_(normed.mul_(along_1)).mul_(scale_1)
        return dx.to(x.dtype), dweight_H, None
