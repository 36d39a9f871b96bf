"""How many tokens to draft: the cost model against worked numbers, and what is chosen by it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.schemas.speedup import (
    Cost,
    Speedup,
    fitted_cost,
    in_words,
    recommend,
    speedup,
)

TAU = [1.7, 2.1, 2.3]


def test_worked_numbers() -> None:
    cost = Cost(batch_size=1, step_cost=0.1, overhead=1.0)
    found = speedup(TAU, cost)
    assert found.expected == pytest.approx([1.7 / 1.1, 2.1 / 1.2, 2.3 / 1.3])
    assert found.best == 3
    dear = speedup(TAU, Cost(batch_size=32, step_cost=0.4, overhead=1.0))
    assert dear.expected == pytest.approx([1.7 / 1.4, 2.1 / 1.8, 2.3 / 2.2])
    assert dear.best == 1
    assert recommend([found, dear], "by guess").draft_tokens == 3
    assert recommend([dear, found], "by guess").draft_tokens == 1


def test_where_drafting_does_not_pay_it_is_said() -> None:
    never = speedup([1.05, 1.06], Cost(batch_size=1, step_cost=0.5, overhead=1.2))
    assert never.best == 0
    advice = recommend([never], "by guess")
    assert advice.draft_tokens == 1
    assert "no number pays" in advice.because


def test_a_drafter_that_waits_costs_too() -> None:
    """Between waiting and the target alone a loaded drafter had better draft, and pays not."""
    found = speedup([1.5], Cost(batch_size=8, step_cost=0.6, overhead=1.0, idle=1.2))
    assert found.expected == pytest.approx([1.5 / 1.6])
    assert (found.best, found.pays) == (1, False)
    waits = speedup([1.5], Cost(batch_size=8, step_cost=0.6, overhead=1.0, idle=1.05))
    assert (waits.best, waits.pays) == (0, False)


def at_batch_sizes(step_costs: dict[int, float]) -> list[Speedup]:
    return [
        speedup(TAU, Cost(batch_size=size, step_cost=cost, overhead=1.0))
        for size, cost in step_costs.items()
    ]


def test_schedule_of_draft_tokens_by_batch_size() -> None:
    found = recommend(at_batch_sizes({8: 0.4, 1: 0.1, 16: 0.4, 64: 0.9}), "by guess")
    assert found.schedule == [(1, 7, 3), (8, 63, 1), (64, 64, 0)]
    assert in_words(found.schedule) == "3 up to batch size 7, 1 up to 63, then 0"
    assert found.draft_tokens == 1
    assert found.most_draft_tokens == 3


@pytest.mark.parametrize("step_costs", [{1: 0.1}, {1: 0.1, 8: 0.11}, {1: 0.9, 8: 1.5}])
def test_no_schedule_where_one_number_does(step_costs: dict[int, float]) -> None:
    found = recommend(at_batch_sizes(step_costs), "by guess")
    assert found.schedule == []
    assert found.most_draft_tokens == found.draft_tokens


@pytest.mark.slow
@pytest.mark.vllm
@settings(deadline=None)
@given(st.dictionaries(st.integers(1, 300), st.floats(0, 1), min_size=1))
def test_vllm_takes_the_schedule(step_costs: dict[int, float]) -> None:
    """And drafts at each measured batch size what is best there."""
    from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

    speedups = at_batch_sizes(step_costs)
    advice = recommend(speedups, "by guess")
    if advice.schedule:
        schedule = json.loads(json.dumps(advice.schedule))
        lookup = build_dynamic_sd_schedule_lookup(schedule, 512, advice.most_draft_tokens)
        assert [lookup[one.cost.batch_size] for one in speedups] == [one.best for one in speedups]
        assert lookup[-1] == max(speedups, key=lambda one: one.cost.batch_size).best


def test_one_timed_number_gives_a_cost() -> None:
    cost = fitted_cost(4, {3: 1.6})
    assert (cost.overhead, cost.step_cost) == pytest.approx((1.0, 0.2))
    assert fitted_cost(4, {3: 0.9}).step_cost == 0
    # Of a parallel drafter it is one pass whatever the number.
    cost = fitted_cost(4, {3: 1.6}, is_parallel=True)
    assert cost.round_cost(1) == cost.round_cost(7) == 1.6


@given(
    st.floats(0.5, 3),
    st.floats(0, 1),
    st.sets(st.integers(1, 7), min_size=2),
)
def test_the_fit_finds_the_cost_that_rounds_were_made_of(
    overhead: float, step_cost: float, counts: set[int]
) -> None:
    made = Cost(batch_size=1, step_cost=step_cost, overhead=overhead)
    found = fitted_cost(1, {0: 1.1} | {n: made.round_cost(n) for n in counts})
    assert found.idle == 1.1
    assert found.step_cost == pytest.approx(step_cost, abs=1e-9)
    assert found.overhead == pytest.approx(overhead)


@given(st.dictionaries(st.integers(1, 7), st.floats(0.01, 100), min_size=1))
def test_whatever_was_timed_makes_a_cost(rounds: dict[int, float]) -> None:
    found = fitted_cost(1, rounds)
    assert found.step_cost >= 0
    assert found.overhead > 0
