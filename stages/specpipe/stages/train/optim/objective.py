"""The objective of a run: the settings of a step's loss, from the configuration and from measures
of earlier steps.

Legend: K heads, N starts, M measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.acceptance.loss.dpace import dpace_weights
from specpipe.stages.acceptance.loss.settings import LossSettings, hybrid_lambda
from specpipe.stages.samples.batch import Batch

SURVIVAL_MEMORY = 0.9
"""Share of the average survival that a step keeps: about the last ten steps count."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Measures of earlier steps that a step's loss needs; a checkpoint stores them."""

    alpha: Sequence[float] | None = None
    """Mean alpha per head of the last step's global batch."""
    survival: Sequence[float] | None = None
    """Share of the starts whose rounds reach head k, [K], averaged over the last steps."""

    def after(self, alpha: Sequence[float], survival: Sequence[float]) -> "Measured":
        """With what the global batch of one more step measured."""
        before = self.survival or survival
        pairs = zip(before, survival, strict=True)
        kept = [SURVIVAL_MEMORY * old + (1 - SURVIVAL_MEMORY) * new for old, new in pairs]
        return Measured(list(alpha), kept)


@dataclass(frozen=True, slots=True)
class Objective:
    """The losses of a run, the weights of its heads, and where lk_hybrid's lambda comes from."""

    config: TrainConfig
    device: torch.device

    def asks_for_alpha(self, before: Measured) -> bool:
        """Whether a pass over the global batch must measure its mean alpha first."""
        config = self.config
        if "lk_hybrid" not in config.losses or config.lambda_scope == "token":
            return False
        return config.lambda_source == "exact" or before.alpha is None

    def settings(self, before: Measured, alpha_K: Tensor | None = None) -> LossSettings:
        """Of one step. `alpha_K` is the global batch's mean alpha, where it was asked for."""
        if alpha_K is None and before.alpha is not None:
            alpha_K = torch.tensor(before.alpha, device=self.device)
        if alpha_K is None or self.config.lambda_scope == "token":
            lambda_K = None
        else:
            lambda_K = hybrid_lambda(alpha_K.float(), self.config.eta)
        return LossSettings(
            losses=self.config.losses,
            head_weights_K=self._head_weights(before),
            lambda_K=lambda_K,
            eta=self.config.eta,
        )

    @property
    def weighs_starts(self) -> bool:
        """Whether a batch's settings follow from its measures, which a pass takes first."""
        return self.config.head_weights == "dpace"

    def of_batch(self, settings: LossSettings, measures_MKN: Tensor, batch: Batch) -> LossSettings:
        """A step's settings with the weights of one batch's starts."""
        weights_KN = dpace_weights(measures_MKN, batch, self.config.dpace_smoothing)
        return replace(settings, weights_KN=weights_KN)

    def _head_weights(self, before: Measured) -> Tensor:
        """head_decay^(k-1), or in proportion to the survival that was measured, with their sum."""
        config = self.config
        heads_K = torch.arange(config.num_heads, dtype=torch.float32, device=self.device)
        weights_K = config.head_decay**heads_K
        if config.head_weights != "survival" or before.survival is None:
            return weights_K
        survival_K = torch.tensor(before.survival, device=self.device)
        return survival_K * (weights_K.sum() / survival_K.sum().clamp(min=1e-30))
