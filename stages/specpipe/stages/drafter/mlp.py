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
        gated_NI = _Gated.apply(self.gate_proj(x_NH), self.up_proj(x_NH))  # type: ignore[no-untyped-call]
        out: Tensor = self.down_proj(gated_NI)
        return out


class _Gated(torch.autograd.Function):
    """silu(gate) * up, which keeps its two inputs and not silu(gate) as well."""

    @staticmethod
    def forward(ctx: Any, gate_NI: Tensor, up_NI: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NI, up_NI)
        return nn.functional.silu(gate_NI).mul_(up_NI)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (dout_NI,) = grad_outputs
        gate_NI, up_NI = ctx.saved_tensors
        dgate_NI = torch.ops.aten.silu_backward(dout_NI * up_NI, gate_NI)
        return dgate_NI, nn.functional.silu(gate_NI).mul_(dout_NI)
