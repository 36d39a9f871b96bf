"""Evaluation on held-out samples: every metric and the replay, whatever the loss."""

from collections.abc import Iterable

import torch

from specpipe.schemas.dump import TextOrigin
from specpipe.schemas.metrics import EvalMetrics
from specpipe.stages.drafter.acceptance import MeasureSums
from specpipe.stages.drafter.batch import Batch
from specpipe.stages.train.trainee import Trainee


@torch.no_grad()
def evaluate(trainee: Trainee, batches: Iterable[Batch], text: TextOrigin) -> EvalMetrics:
    """All metrics of the drafter as it stands, on `batches`."""
    config = trainee.config
    sums = MeasureSums(config.num_heads, keep_spans=True)
    for batch_on_cpu in batches:
        batch = batch_on_cpu.to(trainee.device)
        sums.add(batch, trainee.measure(trainee.hidden(batch), batch))
    return sums.eval_metrics(config.loss, config.eta, config.head_decay, text)


def selection_tau(metrics: EvalMetrics, text: TextOrigin) -> float:
    """What the best checkpoint is chosen by: replayed tau with all heads.

    On text that the target wrote greedily that is the greedy replay, else the one at temperature 1.
    """
    greedy = text.is_greedy
    return (metrics.replay_greedy if greedy else metrics.replay_temperature_1).tau[-1]
