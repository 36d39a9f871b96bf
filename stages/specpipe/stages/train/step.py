"""The gradients of one optimiser step, over all of its packs and all ranks.

Legend: K heads, N starts, H hidden size, P packs of the step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.measures import alpha_sums_of
from specpipe.stages.acceptance.measure_sums import MeasureSums
from specpipe.stages.samples.batch import Batch
from specpipe.stages.samples.on_device import on_device
from specpipe.stages.train.optim.objective import Measured
from specpipe.stages.train.ranks.sharding import gathered
from specpipe.stages.train.trainee import Trainee


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Figures of a step before its update; the same on every rank."""

    losses_P: list[float]
    """What each pack adds to the step's loss, without that of states."""
    grad_norm: float
    """Before clipping."""
    alpha: list[float]
    """Mean alpha per head."""
    sums: MeasureSums

    @property
    def loss(self) -> float:
        return sum(self.losses_P)

    def metrics(self) -> dict[str, Any]:
        """What metrics.jsonl says of the step's tokens."""
        sums = self.sums
        return {
            "draft_loss": self.loss,
            "target_model_loss": sums.target_model_loss,
            "lk": sums.mean("lk"),
            "kl": sums.mean("kl"),
            "cross_entropy": sums.cross_entropy,
            "out_of_vocabulary": [1 - share for share in sums.mean("in_vocabulary")],
            "alpha": sums.mean("alpha"),
            "attainable_mass": sums.mean("mass")[0],
            "temperature_1": sums.sampling(greedy=False).model_dump(),
            "greedy": sums.sampling(greedy=True).model_dump(),
            "grad_norm": self.grad_norm,
        }


def compute_gradients(
    trainee: Trainee,
    packs: Sequence[Batch],
    num_packs: int,
    before: Measured,
    idle: Batch | None,
) -> StepFigures:
    """Leave the clipped gradients of a whole step in the model.

    `packs` are this rank's, on the CPU: those with the numbers rank, rank + size, ... of the
    `num_packs` of the step. A rank of a sharded run that has a pack less than another one walks
    `idle` as well, whose weights are 0: every backward pass takes all ranks.
    """
    trainee.optimizer.zero_grad()
    denominators = _denominators(trainee, packs)
    with gathered(trainee.model):
        walk = _Walk(trainee, packs)
        alpha_K = None
        if trainee.objective.asks_for_alpha(before):
            alpha_K = denominators.mean(trainee.ranks.sum(walk.alpha_sums()))
        settings = trainee.objective.settings(before, alpha_K)
        sums = trainee.measure_sums()
        losses_P = torch.zeros(num_packs, dtype=torch.float64, device=trainee.device)
        alpha_sums_K = torch.zeros_like(denominators.starts_K)
        for number, (batch, hidden_KNH) in enumerate(walk):
            of_batch = settings
            if trainee.objective.weighs_starts:
                measures_MKN = trainee.measure(hidden_KNH, batch)
                of_batch = trainee.objective.of_batch(settings, measures_MKN, batch)
            loss, measures_MKN = trainee.loss(hidden_KNH, batch, denominators, of_batch)
            minimised = trainee.with_states(loss, hidden_KNH, batch, denominators, of_batch)
            minimised.backward()
            losses_P[trainee.ranks.rank + number * trainee.ranks.size] = loss.detach()
            alpha_sums_K += alpha_sums_of(measures_MKN, batch)
            sums.add(batch, measures_MKN)
        if idle is not None and len(packs) < math.ceil(num_packs / trainee.ranks.size):
            batch = idle.to(trainee.device)
            one = Denominators(torch.ones_like(denominators.counts_2K))
            trainee.loss(trainee.hidden(batch), batch, one, settings)[0].backward()
    return _figures(trainee, losses_P, denominators.mean(alpha_sums_K), sums)


@dataclass(slots=True)
class _Walk:
    """Packs on the device with the drafter's outputs, one after the other."""

    trainee: Trainee
    packs: Sequence[Batch]
    _only: tuple[Batch, Tensor] | None = None

    def alpha_sums(self) -> Tensor:
        """Numerators of the mean alpha of these packs, [K]."""
        device = self.trainee.device
        sums_K = torch.zeros(self.trainee.config.num_heads, dtype=torch.float64, device=device)
        if len(self.packs) == 1:
            # Its graph is there for the loss; those of several would not fit.
            batch = self.packs[0].to(device)
            self._only = batch, self.trainee.hidden(batch)
            return sums_K + self.trainee.alpha_sums(self._only[1], batch)
        with torch.no_grad():
            for batch in on_device(self.packs, device):
                sums_K += self.trainee.alpha_sums(self.trainee.hidden(batch), batch)
        return sums_K

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        if self._only is not None:
            yield self._only
            return
        for batch in on_device(self.packs, self.trainee.device):
            yield batch, self.trainee.hidden(batch)


def _denominators(trainee: Trainee, packs: Sequence[Batch]) -> Denominators:
    """Of the whole step, on the device."""
    draft_ids_V = trainee.vocab.draft_ids()
    counts_2K = torch.zeros(2, trainee.config.num_heads, dtype=torch.float64)
    for batch in packs:
        counts_2K += Denominators.of(batch, draft_ids_V).counts_2K
    return Denominators(trainee.ranks.sum(counts_2K).to(trainee.device))


def _figures(trainee: Trainee, losses_P: Tensor, alpha_K: Tensor, sums: MeasureSums) -> StepFigures:
    """Sum gradients and figures over the ranks; waits for the device, once."""
    norm = trainee.clip_gradients()
    parts = [losses_P, alpha_K, sums.sums.to(trainee.device)]
    summed = trainee.ranks.sum(torch.cat(parts))
    values = torch.cat([summed, norm.double().reshape(1)]).cpu()
    losses_P, alpha_K, sums.sums, norm = values.split([*map(len, parts), 1])
    return StepFigures(losses_P.tolist(), norm.item(), alpha_K.tolist(), sums)
