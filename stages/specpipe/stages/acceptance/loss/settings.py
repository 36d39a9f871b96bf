"""Settings of the loss: a weighted sum of losses over weighted heads.

Legend: K heads, N starts, R rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.schemas.settings.train import LossName
from specpipe.stages.acceptance.loss.denominators import Denominators

_LOSSES: tuple[LossName, ...] = ("kl", "tv", "lk_alpha", "ce", "lk_hybrid")


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The losses and their weights, each head's weight, and where lk_hybrid's lambda comes from.

    lambda is one number per head (`lambda_K`) or, where that is None, one per start:
    exp(-eta * alpha) of the start itself, without gradient. `weights_KN` weigh the starts of one
    batch in place of its heads; the means are over the starts all the same, not over the weights.
    """

    losses: Mapping[LossName, float]
    head_weights_K: Tensor
    lambda_K: Tensor | None = None
    eta: float = 3.0
    weights_KN: Tensor | None = None

    def weights_of(self, k: int, starts: Tensor) -> Tensor:
        """What starts of head k weigh, but for multiplicity; a scalar where all weigh the same."""
        return self.head_weights_K[k] if self.weights_KN is None else self.weights_KN[k, starts]

    def of_head(self, k: int, denominators: Denominators) -> "RowWeights":
        """What head k's rows are weighted by, relative to a mean over all its valid starts."""
        kl, tv, lk, ce, hybrid = (self.losses.get(name, 0.0) for name in _LOSSES)
        starts, inside = denominators.starts_K[k], denominators.inside_K[k]
        share = torch.where(inside > 0, starts / inside.clamp(min=1e-30), 0.0)
        lambda_ = torch.zeros_like(starts) if self.lambda_K is None else self.lambda_K[k]
        of_head = 0.0 if self.lambda_K is None else hybrid
        dtype = self.head_weights_K.dtype
        return RowWeights(
            kl=(kl + of_head * lambda_).to(dtype),
            tv=(tv + of_head * (1 - lambda_)).to(dtype),
            ce=(ce * share).to(dtype),
            lk=lk,
            hybrid=hybrid - of_head,
            eta=self.eta,
            move_kl=bool(kl or hybrid),
            move_overlap=bool(tv or lk or hybrid),
        )


@dataclass(frozen=True, slots=True)
class RowWeights:
    """Weights of the losses at one head's rows."""

    kl: Tensor
    """Scalar, as `tv` and `ce`: with the shares of lk_hybrid whose lambda is the head's."""
    tv: Tensor
    ce: Tensor
    """The mean is over the starts whose token is in the draft vocabulary."""
    lk: float
    hybrid: float
    """Weight of lk_hybrid where each start has its own lambda."""
    eta: float
    move_kl: bool
    """Whether the gradient has a part in p~."""
    move_overlap: bool
    """Whether the gradient has a part in [q < p]."""

    def kl_and_tv(self, alpha_R: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of kl and of 1 - alpha, [R], lk_hybrid's shares among them."""
        if not self.hybrid:
            return self.kl.expand_as(alpha_R), self.tv.expand_as(alpha_R)
        lambda_R = torch.exp(-self.eta * alpha_R)
        return self.kl + self.hybrid * lambda_R, self.tv + self.hybrid * (1 - lambda_R)


def hybrid_lambda(alpha_K: Tensor, eta: float) -> Tensor:
    """lk_hybrid's weight of kl, exp(-eta * mean alpha): [K]."""
    return torch.exp(-eta * alpha_K)
