"""How many tokens to draft: a small cost model over a replayed curve.

A round with n draft tokens costs n draft steps and one verification of n + 1 tokens, and gives
tau(n) tokens; without a drafter a target step costs 1 and gives one token. In units of that step
(Leviathan et al. 2023, section 3.3, with measured costs in place of operation counts):

    round_cost(n) = overhead + step_cost * n        speedup(n) = tau(n) / round_cost(n)

`step_cost` is what one more draft token costs, its draft step and its place in the verification;
`overhead` is what a round costs beyond a target step whatever n is. Both depend on the batch size:
the verification of a large batch is bound by arithmetic, and one more token is no longer nearly
free. An engine with a drafter may also draft nothing for a while; the drafter then still follows
the text, at the cost `idle` of a step.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

from pydantic import Field

from specpipe.schemas.base import Frozen


class Cost(Frozen):
    """Cost of a round at one batch size, in steps of the target without a drafter."""

    batch_size: int
    step_cost: float = Field(ge=0)
    overhead: float = Field(gt=0)
    idle: float = Field(1.0, gt=0)
    """Of a step with the drafter loaded and without drafts."""

    def round_cost(self, num_draft_tokens: int) -> float:
        return self.overhead + self.step_cost * num_draft_tokens


class Speedup(Frozen):
    """Expected tokens per second with a drafter, over those without, at one batch size."""

    cost: Cost
    expected: list[float]
    """For 1..K draft tokens."""
    measured: dict[int, float] = Field(default_factory=dict)
    """Where an engine was timed, by number of draft tokens."""
    best: int
    """Draft tokens with the largest expected speed-up; 0 where the drafter had better wait."""

    @property
    def pays(self) -> bool:
        """Whether some number is faster than the target without the drafter."""
        return max(self.expected) > 1


Schedule = list[tuple[int, int, int]]
"""First and last batch size, and draft tokens between: vLLM's
`num_speculative_tokens_per_batch_size`. The last range stands for all larger batches."""


class Recommendation(Frozen):
    """How many tokens to draft, and why."""

    draft_tokens: int
    because: str
    speedups: list[Speedup] = Field(default_factory=list)
    """By batch size; empty where no cost is known."""
    schedule: Schedule = Field(default_factory=list)
    """Empty where one number is best for all batch sizes, or none pays."""

    @property
    def most_draft_tokens(self) -> int:
        """The largest number that is drafted at any batch size."""
        return max([self.draft_tokens, *(number for _, _, number in self.schedule)])


def fitted_cost(
    batch_size: int, relative_rounds: Mapping[int, float], *, is_parallel: bool = False
) -> Cost:
    """The cost from timed rounds, in target steps, by number of draft tokens.

    Least squares over numbers of at least one. Of one number alone the overhead is taken as the
    target step itself; of a parallel drafter, whose round is one pass whatever the number, as the
    whole round. A cost below nothing, which noise can give, is nothing. 0, if it is given,
    is `idle`.
    """
    idle = relative_rounds.get(0, 1.0)
    counts = sorted(n for n in relative_rounds if n > 0)
    values = [relative_rounds[n] for n in counts]
    if len(counts) == 1 and is_parallel:
        slope, overhead = 0.0, values[0]
    elif len(counts) == 1:
        slope, overhead = max(0.0, (values[0] - 1.0) / counts[0]), 1.0
    else:
        mean_n, mean = sum(counts) / len(counts), sum(values) / len(values)
        spread = sum((n - mean_n) ** 2 for n in counts)
        pairs = list(zip(counts, values, strict=True))
        slope = max(0.0, sum((n - mean_n) * (v - mean) for n, v in pairs) / spread)
        overhead = mean - slope * mean_n
        if overhead <= 0:
            # Through the origin.
            slope = sum(n * v for n, v in pairs) / sum(n * n for n in counts)
            overhead = min(values) * 1e-3
    return Cost(batch_size=batch_size, step_cost=slope, overhead=overhead, idle=idle)


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
        best=expected.index(largest) + 1 if largest > 1 / cost.idle else 0,
    )


def recommend(
    speedups: Sequence[Speedup], how: str, *, follows_schedule: bool = True
) -> Recommendation:
    """The best number for the first batch size; at least one, as an artifact cannot ask for none.

    `how` says where the costs come from. Only a drafter that follows a schedule is given one.
    """
    first = speedups[0]
    size = first.cost.batch_size
    largest = max(first.expected)
    times = f"{largest:.2f} times the target's speed at batch size {size}"
    return Recommendation(
        draft_tokens=first.expected.index(largest) + 1,
        because=f"{times}, {how}" if first.pays else _none_pays(first, times, how),
        speedups=list(speedups),
        schedule=_schedule(speedups) if follows_schedule else [],
    )


def _none_pays(first: Speedup, times: str, how: str) -> str:
    """Why: of a small target, a drafter costs nearly what the target does."""
    return (
        f"no number pays: at best {times}, {how}; a round costs {first.cost.overhead:.2f} steps of"
        f" this target and {first.cost.step_cost:.2f} more for each draft token, beside a large"
        " target little more than 1 and a few hundredths"
    )


def _schedule(speedups: Sequence[Speedup]) -> Schedule:
    """Each measured batch size stands for those up to the next one, the first for those below."""
    ordered = sorted(speedups, key=lambda one: one.cost.batch_size)
    groups = [
        (best, next(group).cost.batch_size)
        for best, group in groupby(ordered, key=lambda one: one.best)
    ]
    if len(groups) == 1 or not any(one.pays for one in ordered):
        return []
    firsts = [1, *(size for _, size in groups[1:])]
    lasts = [*(first - 1 for first in firsts[1:]), ordered[-1].cost.batch_size]
    return [
        (first, last, best) for first, last, (best, _) in zip(firsts, lasts, groups, strict=True)
    ]


def in_words(schedule: Schedule) -> str:
    """As "3 up to batch size 7, then 0"."""
    first, *others = schedule
    parts = [f"{first[2]} up to batch size {first[1]}"]
    parts += [f"{number} up to {last}" for _, last, number in others[:-1]]
    return ", ".join([*parts, f"then {others[-1][2]}"])
