"""The gated MLP of a drafter's layer.

Legend: N rows, H hidden size, I intermediate size.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_NH: Tensor) -> Tensor:
        out: Tensor = _GatedDown.apply(  # type: ignore[no-untyped-call]
            self.gate_proj(x_NH), self.up_proj(x_NH), self.down_proj.weight
        )
        return out


class _GatedDown(torch.autograd.Function):
    """(silu(gate) * up) @ down^T, which stores only gate and up for the backward pass: the input of
    `down` is cheap to recompute. Products are in the dtype of `gate` and `up`."""

    @staticmethod
    def forward(ctx: Any, gate_NI: Tensor, up_NI: Tensor, down_HI: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NI, up_NI, down_HI)
        return _gated(gate_NI, up_NI) @ down_HI.to(gate_NI.dtype).T

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate_NI, up_NI, down_HI = ctx.saved_tensors
        dtype = gate_NI.dtype
        dout_NH = grad_outputs[0].to(dtype)
        ddown_HI = dout_NH.T @ _gated(gate_NI, up_NI)
        dgated_NI = dout_NH @ down_HI.to(dtype)
        dup_NI = _gated(gate_NI, dgated_NI)
        dgate_NI = torch.ops.aten.silu_backward(dgated_NI.mul_(up_NI), gate_NI)
        return dgate_NI, dup_NI, ddown_HI.to(down_HI.dtype)


def _gated(gate_NI: Tensor, up_NI: Tensor) -> Tensor:
    return nn.functional.silu(gate_NI).mul_(up_NI)
