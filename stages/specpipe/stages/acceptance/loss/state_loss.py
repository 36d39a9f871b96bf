"""How far a drafter's outputs are from what the target's own lm_head takes at the same places.

EAGLE-1 (arXiv 2401.15077) trains on such a distance beside its loss of tokens. It tells all H
numbers of an output where to go, which the loss of tokens tells through the lm_head alone: worth
most where there is little text.

Legend: K heads, N starts, S verifier rows, H hidden size, X width of an output (H or more).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.samples.batch import Batch


@dataclass(frozen=True, slots=True)
class StateLoss:
    """weight · Σ over heads k of w_k · mean over its starts of |o − s|² / |s|².

    o is the first H numbers of head k's output, and s the target's final state of the token before
    the one that is drafted, after the final norm and times the logit scale: the target's lm_head
    makes its logits of it, but for a soft-cap.
    """

    weight: float
    final_norm: nn.Module
    """The target's, without gradient; [S, H] to [S, H]."""
    logit_scale: float = 1.0
    """The target's. Drafters hold it in their own norm."""

    def __call__(
        self, outputs_KNX: Tensor, batch: Batch, weights_K: Tensor, of: Denominators
    ) -> Tensor:
        """This batch's part of it, a scalar; `of` has the counts of the whole step."""
        assert batch.final_SH is not None, "the dump holds no final states"
        states_SH = self.final_norm(batch.final_SH).to(outputs_KNX.dtype) * self.logit_scale
        size_S = states_SH.square().sum(-1)
        # A state of 0 has no direction to go to.
        shares_S = torch.where(size_S > 0, 1 / size_S, 0.0)
        used_KN = (batch.rows_KN >= 0) * batch.weights_N
        of_head_K = self.weight * of.mean(weights_K)
        factors_KN = used_KN * shares_S[batch.rows_KN.clamp(min=0)] * of_head_K[:, None]
        loss: Tensor = _Distance.apply(  # type: ignore[no-untyped-call]
            outputs_KNX, states_SH, batch.rows_KN, factors_KN.to(outputs_KNX.dtype)
        )
        return loss


class _Distance(torch.autograd.Function):
    """Σ factor · |o − s|², which keeps nothing for its backward pass that is not there anyway."""

    @staticmethod
    def forward(
        ctx: Any, outputs_KNX: Tensor, states_SH: Tensor, rows_KN: Tensor, factors_KN: Tensor
    ) -> Tensor:
        ctx.save_for_backward(outputs_KNX, states_SH, rows_KN, factors_KN)
        total = outputs_KNX.new_zeros(())
        for k in range(len(outputs_KNX)):
            apart_NH = _apart(outputs_KNX[k], states_SH, rows_KN[k])
            total += (apart_NH.square().sum(-1) * factors_KN[k]).sum()
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        outputs_KNX, states_SH, rows_KN, factors_KN = ctx.saved_tensors
        width = states_SH.shape[1]
        gradient_KNX = torch.zeros_like(outputs_KNX)
        for k in range(len(outputs_KNX)):
            apart_NH = _apart(outputs_KNX[k], states_SH, rows_KN[k])
            gradient_KNX[k, :, :width] = 2 * gradient * factors_KN[k, :, None] * apart_NH
        return gradient_KNX, None, None, None


def _apart(outputs_NX: Tensor, states_SH: Tensor, rows_N: Tensor) -> Tensor:
    """o − s, [N, H]; where there is no row, of any one."""
    return outputs_NX[:, : states_SH.shape[1]] - states_SH[rows_N.clamp(min=0)]
