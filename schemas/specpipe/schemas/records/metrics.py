"""Names and units of everything that is reported.

Per-head metrics are lists with one entry per head, head 1 first. Heads are conditional: head k is
measured where the drafts of heads 1..k-1 were accepted (weighted by their survival).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from specpipe.schemas.base import Frozen

_MOST_TAU = 2.0**10


def check_tau(low: float, tau: float, high: float) -> None:
    """Raise ValueError where that is no mean of tokens per round with its confidence interval; what
    is not finite is left to those who train."""
    if not math.isfinite(tau):
        return
    if not 0 <= tau <= _MOST_TAU or not low - 1e-6 <= tau <= high + 1e-6:
        raise ValueError(f"no tau with its interval: {tau:g}, {low:g} to {high:g}")


REPLAY_TITLES = {
    "replay_temperature_1": "temperature 1, drafts sampled",
    "replay_greedy": "greedy",
    "replay_greedy_draft": "temperature 1, drafts greedy",
}
"""Of the replays of an evaluation, by field."""


def replay_titles(*, samples_drafts: bool) -> dict[str, str]:
    """Those that say something of a drafter: where drafts are greedy at every temperature, the
    first curve is the last one."""
    titles = dict(REPLAY_TITLES)
    if not samples_drafts:
        del titles["replay_temperature_1"]
    return titles


class SamplingMetrics(Frozen):
    """One variant (`temperature_1` or `greedy`) of the acceptance metrics."""

    acceptance_rate: list[float]
    """Probability that head k's draft is accepted, given that those before it were."""
    number_of_tokens: list[float]
    """Expected tokens per round when k tokens are drafted, the bonus token counted."""
    accepted_tokens: list[float]
    """Expected accepted drafts per round when k tokens are drafted."""
    system_efficiency: list[float]
    """number_of_tokens / k."""
    draft_efficiency: list[float]
    """accepted_tokens / k."""


class ReplayCurve(Frozen):
    """tau for 1..K draft tokens, from replaying rounds on text (see acceptance/replay.py)."""

    tau: list[float] = Field(min_length=1)
    """Mean tokens per round with k draft tokens, bonus token counted, in [1, k+1]."""
    tau_low: list[float]
    tau_high: list[float]
    """95 % confidence interval over samples."""
    acceptance_per_position: list[list[float]]
    """[K][k]: with K draft tokens, the share of rounds whose first k drafts are accepted."""
    num_rounds: list[float]
    """Expected number of whole rounds on the text."""
    exact: bool
    """Whether the text is of the kind for which the replay is exact."""

    @model_validator(mode="after")
    def _in_their_intervals(self) -> "ReplayCurve":
        for low, tau, high in zip(self.tau_low, self.tau, self.tau_high, strict=True):
            check_tau(low, tau, high)
        return self


class TauDifference(Frozen):
    """tau of one drafter minus that of another for 1..K draft tokens, replayed on the same text."""

    difference: list[float]
    low: list[float]
    high: list[float]
    """95 % confidence interval, paired over samples."""
    standard_error: list[float]

    def in_words(self) -> str:
        """Of the largest number of draft tokens."""
        return f"{self.difference[-1]:+.4f} ({self.low[-1]:+.4f} to {self.high[-1]:+.4f})"


class EvalMetrics(Frozen):
    """What one evaluation reports, whatever the loss that is trained."""

    num_samples: int
    num_positions: int
    """Supervised positions of head 1."""
    draft_loss: float
    target_model_loss: float
    """Mean negative log-probability of the text under the target, nats per token."""
    lk: list[float]
    """Mean -log alpha, nats."""
    kl: list[float]
    """Mean KL(p~ || q), p~ the verifier renormalised on the draft vocabulary, nats."""
    cross_entropy: list[float]
    """Mean -log q(token) over the rows whose token is in the draft vocabulary, nats."""
    out_of_vocabulary: list[float]
    """Share of rows whose token is outside the draft vocabulary (left out of cross_entropy)."""
    alpha: list[float]
    """Mean sum of min(p, q), not conditioned on the heads before."""
    attainable_mass: float
    """Mean verifier probability on the draft vocabulary: the ceiling of alpha."""
    temperature_1: SamplingMetrics
    """With drafts as engines make them: sampled, or greedy where those of an architecture are."""
    greedy: SamplingMetrics
    replay_temperature_1: ReplayCurve
    """The target samples at temperature 1, and the drafter where engines sample its drafts
    (probabilistic drafting); else it is greedy."""
    replay_greedy: ReplayCurve
    """Target and drafter are greedy."""
    replay_greedy_draft: ReplayCurve
    """The drafter is greedy, the target samples at temperature 1 (vLLM's default)."""

    def replay(self, *, is_greedy: bool) -> ReplayCurve:
        """The replay of the decoding that the text is of: what drafters are compared by."""
        return self.replay_greedy if is_greedy else self.replay_temperature_1


def sampling_metrics(acceptance_rate: list[float]) -> SamplingMetrics:
    """The curve over k draft tokens that follows from the conditional acceptance rates."""
    accepted, survival, total = [], 1.0, 0.0
    for rate in acceptance_rate:
        survival *= rate
        total += survival
        accepted.append(total)
    return SamplingMetrics(
        acceptance_rate=acceptance_rate,
        number_of_tokens=[1 + a for a in accepted],
        accepted_tokens=accepted,
        system_efficiency=[(1 + a) / k for k, a in enumerate(accepted, start=1)],
        draft_efficiency=[a / k for k, a in enumerate(accepted, start=1)],
    )


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of metrics.jsonl by the names that loggers get.

    A step's metrics stand under train/, an evaluation's under eval/; of a list, which has an entry
    per head or per number of draft tokens, entry k ends in /head_k or /tokens_k:
    train/kl/head_2, eval/temperature_1/acceptance_rate/head_1, eval/replay_greedy/tau/tokens_3.
    """
    evaluation = row.get("eval")
    values = row if evaluation is None else evaluation
    prefix = "train" if evaluation is None else "eval"
    return dict(_scalars(prefix, values, "head"))


def _scalars(prefix: str, values: Mapping[str, Any], entry: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        path = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            yield from _scalars(path, value, "tokens" if name.startswith("replay") else entry)
        elif isinstance(value, list):
            # What has an entry per head and number of tokens stays in metrics.jsonl.
            numbers = [v for v in value if not isinstance(v, list)]
            for index, number in enumerate(numbers, start=1):
                yield f"{path}/{entry}_{index}", float(number)
        elif name != "step" and isinstance(value, int | float):
            yield path, float(value)
