"""The recommendation from what a real engine measured (tests/report/served.json)."""

import json
from pathlib import Path

import pytest

from specpipe.schemas.records.metrics import ReplayCurve
from specpipe.schemas.records.served import ServeFindings, StepTime
from specpipe.schemas.records.validation import ReplayFindings
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.stages.drafters.contract import Serving
from specpipe.stages.export.draft_tokens import CURVE, LevelFindings, recommendation

CHAIN = Serving(method="eagle3", title="EAGLE-3")
ONE_PASS = Serving(method="eagle3", title="P-EAGLE", is_parallel=True, follows_schedule=False)
SERVED = Path(__file__).parents[1] / "report" / "served.json"
REPLAY = ReplayFindings(
    passed=True,
    dump="dump",
    fingerprint="f" * 64,
    num_samples=1,
    compared_with="recorded",
    artifact={
        CURVE: ReplayCurve(
            tau=[1.5, 1.8, 1.9],
            tau_low=[1.5, 1.8, 1.9],
            tau_high=[1.5, 1.8, 1.9],
            acceptance_per_position=[[0.5], [0.5, 0.3], [0.5, 0.3, 0.1]],
            num_rounds=[10, 10, 10],
            exact=True,
        )
    },
    trained_tau={},
    largest_difference=0,
    tolerance=0.002,
    problems=[],
)


@pytest.fixture
def served() -> ServeFindings:
    return ServeFindings.model_validate(json.loads(SERVED.read_text("utf-8"))["serve"])


def timed(served: ServeFindings, seconds: dict[int | None, float]) -> LevelFindings:
    times = [
        StepTime(batch_size=1, num_draft_tokens=number, seconds_per_step=of_step)
        for number, of_step in seconds.items()
    ]
    return LevelFindings(replay=REPLAY, serve=served.model_copy(update={"step_times": times}))


def config(**settings: object) -> ExportConfig:
    values = {"checkpoint": "c", "out": "o", "serve_batch_sizes": (1,), **settings}
    return ExportConfig.model_validate(values)


def test_by_step_times(served: ServeFindings) -> None:
    """A step of 2 s, rounds of 3 s and half a second for each draft token."""
    found = timed(served, {None: 2.0, 0: 2.5, 1: 3.5, 2: 4.0, 3: 4.5})
    advice = recommendation(config(), 3, found, CHAIN)
    (speedup,) = advice.speedups
    cost = speedup.cost
    assert (cost.overhead, cost.step_cost, cost.idle) == pytest.approx((1.5, 0.25, 1.25))
    assert speedup.expected == pytest.approx([1.5 / 1.75, 1.8 / 2, 1.9 / 2.25])
    assert advice.draft_tokens == 2
    assert advice.because.startswith("no number pays: at best 0.90 times")
    tau = {run.num_draft_tokens: run.temperature_1 for run in served.runs}
    for number, measured in speedup.measured.items():
        comparison = tau[number]
        assert comparison is not None
        assert measured == pytest.approx(comparison.tau_measured / cost.round_cost(number))


def test_an_engine_without_a_drafter_is_never_the_slower_one(served: ServeFindings) -> None:
    """It was timed while the machine was slow: what it lost is no gain of drafts."""
    found = timed(served, {None: 9.0, 0: 2.5, 1: 3.5, 2: 4.0, 3: 4.5})
    (speedup,) = recommendation(config(), 3, found, CHAIN).speedups
    assert speedup.cost.idle == 1
    assert speedup.expected == pytest.approx([1.5 / 1.4, 1.8 / 1.6, 1.9 / 1.8])


def test_a_drafter_of_one_pass_that_follows_no_schedule(served: ServeFindings) -> None:
    """Each number was timed in an engine of its own; at batch size 8 no draft is the best."""
    times = [
        StepTime(batch_size=size, num_draft_tokens=number, seconds_per_step=seconds)
        for size, of_round in ((1, 3.0), (8, 9.0))
        for number, seconds in {None: 2.0, 1: of_round, 2: of_round, 3: of_round}.items()
    ]
    found = LevelFindings(replay=REPLAY, serve=served.model_copy(update={"step_times": times}))
    both = config(serve_batch_sizes=(1, 8))
    advice = recommendation(both, 3, found, ONE_PASS)
    assert advice.schedule == []
    first = advice.speedups[0]
    assert (first.cost.overhead, first.cost.step_cost) == pytest.approx((1.5, 0.0))
    assert advice.draft_tokens == 3
    assert first.measured.keys() == {1, 2, 3}
    cheap = recommendation(config(step_cost=0.15), 3, LevelFindings(replay=REPLAY), ONE_PASS)
    assert cheap.draft_tokens == 3
    assert cheap.speedups[0].expected == pytest.approx([1.5 / 1.15, 1.8 / 1.15, 1.9 / 1.15])


def test_without_times() -> None:
    found = LevelFindings(replay=REPLAY)
    assert recommendation(config(), 3, found, CHAIN).draft_tokens == 3
    cheap = recommendation(config(step_cost=0.15), 3, found, CHAIN)
    assert cheap.draft_tokens == 2
    assert cheap.because == (
        "1.38 times the target's speed at batch size 1, with a step cost of 0.15"
    )
    assert recommendation(config(), 3, LevelFindings(), CHAIN).draft_tokens == 3
    assert recommendation(config(speculative_tokens=7), 3, found, CHAIN).because == "given"
