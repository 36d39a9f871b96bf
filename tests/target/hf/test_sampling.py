"""Sampling: right frequencies, streams of their own, the top-p cut."""

import numpy as np
import pytest
import torch

from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.target.hf.sampling import Sampler

LOGITS_V = torch.tensor([2.0, -1.0, 0.5, 0.0, -3.0, 1.5])
NUM_DRAWS = 4000


def draws(settings: GenerateConfig, seed: int = 7) -> np.ndarray:
    """How often each token is drawn by one stream."""
    sampler = Sampler(settings, [seed])
    chosen = [int(sampler.choose(LOGITS_V[None], [0])[0]) for _ in range(NUM_DRAWS)]
    return np.bincount(chosen, minlength=len(LOGITS_V))


def check(counts_V: np.ndarray, probs_V: torch.Tensor) -> None:
    """Pearson's statistic below its 99.99 % point for 5 degrees of freedom, or fewer."""
    expected_V = NUM_DRAWS * probs_V.double().numpy()
    assert counts_V[expected_V == 0].sum() == 0
    counts_V, expected_V = counts_V[expected_V > 0], expected_V[expected_V > 0]
    assert ((counts_V - expected_V) ** 2 / expected_V).sum() < 25.7


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature: float) -> None:
    check(draws(GenerateConfig(temperature=temperature)), (LOGITS_V / temperature).softmax(-1))


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, [0]), (0.6, [0, 5]), (0.85, [0, 5, 2]), (0.99, [0, 1, 2, 3, 5])]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: list[int]) -> None:
    probs_V = LOGITS_V.softmax(-1)
    assert probs_V[kept].sum() >= top_p
    only_V = torch.zeros_like(probs_V)
    only_V[kept] = probs_V[kept] / probs_V[kept].sum()
    check(draws(GenerateConfig(top_p=top_p)), only_V)


def test_temperature_0_takes_the_likeliest() -> None:
    counts_V = draws(GenerateConfig(temperature=0.0))
    assert counts_V[0] == NUM_DRAWS


def test_a_stream_is_its_own_whatever_else_is_sampled() -> None:
    settings = GenerateConfig()
    alone, among = Sampler(settings, [5]), Sampler(settings, [1, 5, 9])
    for step in range(50):
        rows = [0, 1, 2] if step % 2 else [1]
        logits_BV = LOGITS_V.expand(len(rows), -1)
        ours = among.choose(logits_BV, rows)[rows.index(1)]
        assert int(ours) == int(alone.choose(LOGITS_V[None], [0])[0])


def test_logits_that_are_not_finite_give_a_token_all_the_same() -> None:
    chosen = Sampler(GenerateConfig(), [0]).choose(torch.full((1, 4), torch.nan), [0])
    assert 0 <= int(chosen) < 4
