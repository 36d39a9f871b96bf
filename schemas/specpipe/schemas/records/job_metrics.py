"""Metrics of a job under the names of the Token Factory API.

Loss metrics per head are lk, kl and cross_entropy, whatever loss is trained; beside them stand
target_model_loss and draft_loss. Sampling metrics per head are acceptance_rate, number_of_tokens
and system_efficiency, of the variation temperature=1.0.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from specpipe.schemas.base import Frozen

PER_HEAD = ("lk", "kl", "cross_entropy")
SAMPLING = ("acceptance_rate", "number_of_tokens", "system_efficiency")
VARIATION = "temperature_1.0"


class JobMetrics(Frozen):
    """A line of a job's metrics.jsonl."""

    step: int
    split: str
    """`train`: of the step's batch; `validation`: of what is held out."""
    metrics: dict[str, float]
    """Head k's end in /head_k, k from 1."""


def job_metrics(rows: Iterable[Mapping[str, Any]]) -> Iterator[JobMetrics]:
    """The rows of a training run's metrics.jsonl under the API's names, in their order."""
    for row in rows:
        found = row.get("eval")
        split = "train" if found is None else "validation"
        values = row if found is None else found
        yield JobMetrics(step=row["step"], split=split, metrics=dict(_named(values)))


def newest(lines: Iterable[JobMetrics]) -> dict[str, float]:
    """The last value of each metric, by split and name: validation/kl/head_1."""
    found: dict[str, float] = {}
    for line in lines:
        found |= {f"{line.split}/{name}": value for name, value in line.metrics.items()}
    return found


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in ("draft_loss", "target_model_loss"):
        if name in values:
            yield name, float(values[name])
    for name in PER_HEAD:
        yield from _heads(name, values.get(name, []))
    for name in SAMPLING:
        yield from _heads(f"{VARIATION}/{name}", values.get("temperature_1", {}).get(name, []))


def _heads(name: str, values: Iterable[float | None]) -> Iterator[tuple[str, float]]:
    for head, value in enumerate(values, start=1):
        if value is not None:
            yield f"{name}/head_{head}", float(value)
