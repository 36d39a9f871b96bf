"""Evaluation on held-out samples: every metric and the replay, whatever the loss."""

import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from safetensors.numpy import load, save

from specpipe.schemas.records.dump import TextOrigin
from specpipe.schemas.records.metrics import EvalMetrics
from specpipe.stages.acceptance.measure_sums import MeasureSums
from specpipe.stages.acceptance.replay import ReplaySpan
from specpipe.stages.samples.batch import Batch
from specpipe.stages.samples.on_device import on_device
from specpipe.stages.train.memory import enough_memory
from specpipe.stages.train.ranks.sharding import gathered
from specpipe.stages.train.trainee import Trainee


@torch.no_grad()
def evaluate(
    trainee: Trainee,
    batches: Iterable[Batch],
    num_batches: int,
    text: TextOrigin,
    should_stop: Callable[[], str | None],
) -> EvalMetrics | str:
    """All metrics of the drafter as it stands, on the batches of all ranks.

    `batches` are this rank's: those with the numbers rank, rank + size, ... of `num_batches`.
    Between them the ranks ask together whether to stop, and where they do, return the reason; so
    they do where a rank's batches end too early.
    """
    ranks = trainee.ranks
    sums = trainee.measure_sums(keep_spans=True)
    moved = on_device(batches, trainee.device)
    with gathered(trainee.model):
        for first in range(0, num_batches, ranks.size):
            is_mine, is_last = first + ranks.rank < num_batches, first + ranks.size >= num_batches
            with ranks.together() as agreed, enough_memory("in an evaluation"):
                batch = next(moved, None)
                if batch is not None:
                    measures_MKN = trainee.measure(trainee.hidden(batch), batch)
                    sums.add(batch, measures_MKN, trainee.measures_of_fewer(batch))
                if not is_last or (is_mine and batch is None):
                    agreed.reason = should_stop()
            if agreed.reason is not None:
                return agreed.reason
    if ranks.size > 1:
        sums = _merged([load(data) for data in ranks.gather(save(_arrays(sums)))], sums.num_heads)
    metrics = trainee.eval_metrics(sums, text)
    # One rank's last bit must not decide differently from another's which checkpoint is best.
    # Not as pydantic's JSON, which has no numbers that are not finite.
    encoded = ranks.of_first(lambda: json.dumps(metrics.model_dump()).encode())
    return EvalMetrics.model_validate(json.loads(encoded))


_Arrays = dict[str, np.ndarray]


def _arrays(sums: MeasureSums) -> _Arrays:
    """The sums of one rank and the spans that the replay needs."""
    spans = sums.sampled_spans
    return {
        "sums": sums.sums.cpu().numpy(),
        "num_samples": np.array([sums.num_samples]),
        "num_tokens": np.array([span.num_tokens for span in spans], dtype=np.int64),
        "sample": np.array([span.sample for span in spans], dtype=np.int64),
        "weight": np.array([span.weight for span in spans], dtype=np.float64),
        "sampled": _columns(spans, sums.num_heads),
        "greedy": _columns(sums.greedy_spans, sums.num_heads),
    }


def _columns(spans: Sequence[ReplaySpan], num_heads: int) -> np.ndarray:
    """w of all spans, of passes with fewer heads first: float [starts, X]."""
    if not spans:
        return np.zeros((0, num_heads))
    rows = (np.concatenate([*span.fewer, span.accept_RK], axis=1) for span in spans)
    # safetensors writes an array's memory as it lies.
    return np.ascontiguousarray(np.concatenate(list(rows)))


def _merged(parts: list[_Arrays], num_heads: int) -> MeasureSums:
    """The sums of all ranks, whose samples are different ones."""
    merged = MeasureSums(num_heads, keep_spans=True)
    for part in parts:
        merged.sums += torch.from_numpy(part["sums"])
        lengths = part["num_tokens"] - 1
        for name, spans in (("sampled", merged.sampled_spans), ("greedy", merged.greedy_spans)):
            accepts = np.split(part[name], np.cumsum(lengths)[:-1]) if len(lengths) else []
            for columns_RX, n, sample, weight in zip(
                accepts, part["num_tokens"], part["sample"], part["weight"], strict=True
            ):
                # Passes with 1, 2, ... heads stand before that with all, where there are any.
                is_one = columns_RX.shape[1] == num_heads
                cuts = np.cumsum(np.arange(1, 1 if is_one else num_heads))
                *fewer, accept_RK = np.split(columns_RX, cuts, axis=1)
                number = merged.num_samples + int(sample)
                spans.append(ReplaySpan(accept_RK, int(n), number, float(weight), tuple(fewer)))
        merged.num_samples += int(part["num_samples"][0])
    return merged


def selection_tau(metrics: EvalMetrics, text: TextOrigin) -> float:
    """What the best checkpoint is chosen by: replayed tau with all heads.

    On text that the target wrote greedily that is the greedy replay, else the one at temperature 1.
    """
    return metrics.replay(is_greedy=text.is_greedy).tau[-1]
