"""The target's final norm, frozen, for drafters that take its final state as its lm_head does.

Legend: N states, H hidden size.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn


class FinalNorm(nn.Module):
    """The target's own module: no parameter of the drafter, and in no checkpoint.

    It computes in the target's dtype, whatever the drafter's: an engine hands over what the target
    has computed.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self._of_target = [deepcopy(norm)]  # in a list, which `Module.to` does not look into

    @torch.no_grad()
    def forward(self, final_NH: Tensor) -> Tensor:
        """[N, H] from states before the norm."""
        weight = next(self._of_target[0].parameters(), None)
        if weight is not None:
            if weight.device != final_NH.device:
                self._of_target[0].to(final_NH.device)
            final_NH = final_NH.to(weight.dtype)
        with torch.autocast(final_NH.device.type, enabled=False):
            normed_NH: Tensor = self._of_target[0](final_NH)
        return normed_NH
