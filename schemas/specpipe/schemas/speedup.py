"""How many tokens to draft: a small cost model over a replayed curve.

A round with n draft tokens costs n draft steps and one verification of n + 1 tokens, and gives
tau(n) tokens; without a drafter a target step costs 1 and gives one token. In units of that step
(Leviathan et al. 2023, section 3.3, with measured costs in place of operation counts):

    round_cost(n) = overhead + step_cost * n        speedup(n) = tau(n) / round_cost(n)

`step_cost` is what one more draft token costs, its draft step and its place in the verification;
`overhead` is what a round costs beyond a target step whatever n is. Both depend on the batch size:
the verification of a large batch is bound by arithmetic, and one more token is no longer nearly
free.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field

from specpipe.schemas.metrics import Frozen


class Cost(Frozen):
    """Of a round, in units of a target step without a drafter, at one batch size."""

    batch_size: int
    step_cost: float = Field(ge=0)
    overhead: float = Field(gt=0)

    def round_cost(self, num_draft_tokens: int) -> float:
        return self.overhead + self.step_cost * num_draft_tokens


class Speedup(Frozen):
    """Expected tokens per second over those without a drafter, at one batch size."""

    cost: Cost
    expected: list[float]
    """For 1..K draft tokens."""
    measured: dict[int, float] = Field(default_factory=dict)
    """Where an engine was timed, by number of draft tokens."""
    best: int
    """Draft tokens with the largest expected speed-up; 0 where drafting does not pay."""


class Recommendation(Frozen):
    """How many tokens to draft, and why."""

    draft_tokens: int
    because: str
    speedups: list[Speedup] = Field(default_factory=list)
    """By batch size; empty where no cost is known."""


def fitted_cost(batch_size: int, relative_rounds: Mapping[int, float]) -> Cost:
    """The cost from timed rounds, in target steps, by number of draft tokens (at least one).

    Least squares; of one number alone the overhead is taken as the target step itself. A cost
    below nothing, which noise can give, is nothing.
    """
    counts = sorted(relative_rounds)
    values = [relative_rounds[n] for n in counts]
    if len(counts) == 1:
        return Cost(
            batch_size=batch_size,
            step_cost=max(0.0, (values[0] - 1.0) / counts[0]),
            overhead=1.0,
        )
    mean_n, mean = sum(counts) / len(counts), sum(values) / len(values)
    spread = sum((n - mean_n) ** 2 for n in counts)
    pairs = zip(counts, values, strict=True)
    slope = max(0.0, sum((n - mean_n) * (v - mean) for n, v in pairs) / spread)
    overhead = mean - slope * mean_n
    if overhead <= 0:
        # Through the origin.
        slope = sum(n * v for n, v in zip(counts, values, strict=True)) / sum(n * n for n in counts)
        overhead = min(values) * 1e-3
    return Cost(batch_size=batch_size, step_cost=slope, overhead=overhead)


def speedup(
    tau: Sequence[float], cost: Cost, measured: Mapping[int, float] | None = None
) -> Speedup:
    """`tau` holds tokens per round for 1..K draft tokens."""
    expected = [tokens / cost.round_cost(n) for n, tokens in enumerate(tau, start=1)]
    largest = max(expected)
    return Speedup(
        cost=cost,
        expected=expected,
        measured=dict(measured or {}),
        best=expected.index(largest) + 1 if largest > 1 else 0,
    )


def recommend(speedups: Sequence[Speedup], how: str) -> Recommendation:
    """The best number for the first batch size; at least one, as an artifact cannot ask for none.

    `how` says where the costs come from.
    """
    first = speedups[0]
    size = first.cost.batch_size
    number = first.best or first.expected.index(max(first.expected)) + 1
    times = f"{first.expected[number - 1]:.2f} times the target's speed at batch size {size}"
    because = f"{times}, {how}" if first.best else f"no number pays: at best {times}, {how}"
    return Recommendation(draft_tokens=number, because=because, speedups=list(speedups))
