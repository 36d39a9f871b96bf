"""The learning rate over a run: a function of the step alone."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.train.optim.schedule import rate_factor
from tests.train.conftest import resolved

SCHEDULES = get_args(TrainConfig.model_fields["schedule"].annotation)


def factors(total: int, **settings: object) -> list[float]:
    config = resolved(TrainConfig.model_validate({"dump": "d", "out": "o", **settings}))
    return [rate_factor(step, total, config) for step in range(total)]


@given(
    schedule=st.sampled_from(SCHEDULES),
    total=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    decay=st.floats(0.001, 1),
)
def test_every_schedule_rises_to_one_and_never_reaches_zero(
    schedule: str, total: int, warmup: float, decay: float
) -> None:
    rates = factors(total, schedule=schedule, warmup_ratio=warmup, wsd_decay=decay)
    top = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[top] == 1 or round(total * warmup) == total


def test_the_rise_is_linear_whatever_comes_after() -> None:
    for schedule in SCHEDULES:
        rates = factors(100, schedule=schedule, warmup_ratio=0.1)
        assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
        assert rates[10] == 1.0


def test_shapes_after_the_rise() -> None:
    assert factors(100, schedule="cosine", warmup_ratio=0)[50] == pytest.approx(0.5)
    assert factors(100, schedule="cosine", warmup_ratio=0)[25] == pytest.approx(0.8535534)
    assert factors(4, schedule="linear", warmup_ratio=0) == [1, 0.75, 0.5, 0.25]
    assert factors(5, schedule="constant", warmup_ratio=0) == [1] * 5
    wsd = factors(100, schedule="wsd", warmup_ratio=0.1, wsd_decay=0.4)
    assert wsd[10:61] == [1] * 51
    assert wsd[70] == pytest.approx(0.5)
    assert wsd[99] == pytest.approx(1 - (39 / 40) ** 0.5)


def test_every_schedule_but_constant_ends_low() -> None:
    for schedule in SCHEDULES:
        assert (factors(200, schedule=schedule)[-1] < 0.02) is (schedule != "constant")
