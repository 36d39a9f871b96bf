"""What is minimised: a weighted sum of losses, over weighted heads.

Legend: K heads, R rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.schemas.train_config import LossName
from specpipe.stages.drafter.loss.denominators import Denominators


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The losses and their weights, each head's weight, and where lk_hybrid's lambda comes from.

    lambda is one number per head (`lambda_K`) or, where that is None, one per start:
    exp(-eta * alpha) of the start itself, without gradient.
    """

    losses: Mapping[LossName, float]
    head_weights_K: Tensor
    lambda_K: Tensor | None = None
    eta: float = 3.0

    def of_head(self, k: int, denominators: Denominators) -> "RowWeights":
        """What head k's rows are weighted by, relative to a mean over all its valid starts."""
        weights = {name: self.losses.get(name, 0.0) for name in ("kl", "tv", "lk_alpha", "ce")}
        hybrid = self.losses.get("lk_hybrid", 0.0)
        starts, inside = denominators.starts_K[k], denominators.inside_K[k]
        share = torch.where(inside > 0, starts / inside.clamp(min=1e-30), 0.0)
        return RowWeights(
            kl=weights["kl"],
            tv=weights["tv"],
            lk=weights["lk_alpha"],
            ce=(weights["ce"] * share).to(self.head_weights_K.dtype),
            hybrid=hybrid,
            lambda_=None if self.lambda_K is None else self.lambda_K[k],
            eta=self.eta,
        )


@dataclass(frozen=True, slots=True)
class RowWeights:
    """Weights of the losses at one head's rows."""

    kl: float
    tv: float
    lk: float
    ce: Tensor
    """Scalar: the mean is over the starts whose token is in the draft vocabulary."""
    hybrid: float
    lambda_: Tensor | None
    eta: float

    @property
    def move_overlap(self) -> bool:
        """Whether the gradient has a part in [q < p]."""
        return bool(self.tv or self.lk or self.hybrid)

    @property
    def move_kl(self) -> bool:
        return bool(self.kl or self.hybrid)

    def kl_and_tv(self, alpha_R: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of kl and of 1 - alpha, [R], lk_hybrid's shares among them."""
        lambda_R = torch.exp(-self.eta * alpha_R) if self.lambda_ is None else self.lambda_
        kl_R = self.kl + self.hybrid * lambda_R
        tv_R = self.tv + self.hybrid * (1 - lambda_R)
        return kl_R.to(alpha_R).expand_as(alpha_R), tv_R.to(alpha_R).expand_as(alpha_R)


def hybrid_lambda(alpha_K: Tensor, eta: float) -> Tensor:
    """lk_hybrid's weight of kl, exp(-eta * mean alpha): [K]."""
    return torch.exp(-eta * alpha_K)
