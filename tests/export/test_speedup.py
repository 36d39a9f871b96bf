"""How many tokens to draft: the cost model against worked numbers, and what is chosen by it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpipe.schemas.speedup import Cost, fitted_cost, recommend, speedup

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


def test_one_timed_number_gives_a_cost() -> None:
    cost = fitted_cost(4, {3: 1.6})
    assert (cost.overhead, cost.step_cost) == pytest.approx((1.0, 0.2))
    assert fitted_cost(4, {3: 0.9}).step_cost == 0


@given(
    st.floats(0.5, 3),
    st.floats(0, 1),
    st.sets(st.integers(1, 7), min_size=2),
)
def test_the_fit_finds_the_cost_that_rounds_were_made_of(
    overhead: float, step_cost: float, counts: set[int]
) -> None:
    made = Cost(batch_size=1, step_cost=step_cost, overhead=overhead)
    found = fitted_cost(1, {n: made.round_cost(n) for n in counts})
    assert found.step_cost == pytest.approx(step_cost, abs=1e-9)
    assert found.overhead == pytest.approx(overhead)


@given(st.dictionaries(st.integers(1, 7), st.floats(0.01, 100), min_size=1))
def test_whatever_was_timed_makes_a_cost(rounds: dict[int, float]) -> None:
    found = fitted_cost(1, rounds)
    assert found.step_cost >= 0
    assert found.overhead > 0
