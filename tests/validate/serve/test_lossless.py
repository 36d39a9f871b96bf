import numpy as np
import pytest

from specpipe.stages.validate.serve.lossless import (
    bf16_step,
    check_greedy,
    check_sampled,
    greedy_difference,
)


@pytest.mark.parametrize(("value", "step"), [(1.0, 2**-7), (1.99, 2**-7), (-17.0, 0.125)])
def test_bf16_step(value: float, step: float) -> None:
    assert bf16_step(value) == step


def test_same_output_has_no_difference() -> None:
    assert greedy_difference(0, [1, 2, 0], [1, 2, 0], np.zeros((3, 3))) is None


def test_near_tie_is_named_and_passes() -> None:
    logits_SV = np.array([[9.0, 0, 0], [0, 10.0, 9.9], [0, 0, 5.0]])
    difference = greedy_difference(7, [0, 1, 2], [0, 2, 0], logits_SV)
    assert difference is not None
    assert (difference.prompt, difference.position) == (7, 1)
    assert (difference.token_without_drafter, difference.token_with_drafter) == (1, 2)
    assert difference.logit_gap == pytest.approx(0.1)
    assert difference.near_tie
    check = check_greedy([None, difference])
    assert (check.num_prompts, check.num_identical, check.passed) == (2, 1, True)


def test_clear_difference_fails() -> None:
    logits_SV = np.array([[9.0, 0, 0], [0, 10.0, 8.0]])
    difference = greedy_difference(0, [0, 1], [0, 2], logits_SV)
    assert difference is not None
    assert not difference.near_tie
    assert not check_greedy([difference]).passed


def test_sampled_outputs_of_the_target_pass_and_others_fail() -> None:
    rng = np.random.default_rng(0)
    without_B, with_B = rng.normal(-1.3, 0.3, 100), rng.normal(-1.3, 0.3, 100)
    excess_B = rng.normal(0, 0.1, 100)
    assert check_sampled(without_B, with_B, excess_B, 0.3).passed
    assert not check_sampled(without_B, with_B - 1.0, excess_B, 0.3).passed
    # Too small for the first test, plain for the second; and nothing in size.
    assert not check_sampled(without_B, with_B - 0.06, excess_B - 0.06, 1e-6).passed
    assert check_sampled(without_B, with_B, excess_B * 1e-3, 1e-6).passed
