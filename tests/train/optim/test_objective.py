"""From a run's configuration and what its steps measured to what a step minimises."""

import math

import pytest
import torch

from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.acceptance.loss.measures import MEASURES
from specpipe.stages.train.optim.objective import Measured, Objective
from tests.acceptance.loss.loss_rows import rows_batch
from tests.train.conftest import MakeConfig

CPU = torch.device("cpu")
NEVER = Measured()
BEFORE = Measured(alpha=[0.6, 0.4, 0.2], survival=[1.0, 0.5, 0.1])


def objective(make_config: MakeConfig, **settings: object) -> Objective:
    return Objective(make_config(**settings), CPU)


def test_losses_are_one_or_a_weighted_sum(make_config: MakeConfig) -> None:
    for given, losses in (
        ("kl", {"kl": 1.0}),
        ("kl=0.5,tv=2", {"kl": 0.5, "tv": 2.0}),
        ({"ce": 0.1, "lk_alpha": 1}, {"ce": 0.1, "lk_alpha": 1.0}),
        ("dspark", {"ce": 0.1, "tv": 1.8}),
    ):
        ours = objective(make_config, loss=given)
        assert ours.settings(NEVER).losses == losses
        again = TrainConfig.model_validate_json(ours.config.model_dump_json())
        assert again == ours.config
        assert not ours.asks_for_alpha(NEVER)


@pytest.mark.parametrize(
    "loss", ["kll", "", {}, "kl=0.5,kl=0.5", "kl=0", "kl=-1", "kl=x", {"a": 1}]
)
def test_no_other_losses(make_config: MakeConfig, loss: object) -> None:
    with pytest.raises(ValueError, match="loss"):
        make_config(loss=loss)


def test_lambda_of_this_batch_or_of_the_last_step(make_config: MakeConfig) -> None:
    alpha_K = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)
    exact = objective(make_config, loss="lk_hybrid", lambda_source="exact", eta=2.0)
    assert exact.asks_for_alpha(NEVER)
    assert exact.asks_for_alpha(BEFORE)
    lambda_K = exact.settings(BEFORE, alpha_K).lambda_K
    torch.testing.assert_close(lambda_K, torch.exp(-2 * alpha_K).float())
    lagging = objective(make_config, loss="lk_hybrid=1,ce=0.1", lambda_source="previous_step")
    assert lagging.asks_for_alpha(NEVER), "the first step has none before it"
    assert not lagging.asks_for_alpha(BEFORE)
    lambda_K = lagging.settings(BEFORE).lambda_K
    torch.testing.assert_close(lambda_K, torch.exp(-3 * torch.tensor([0.6, 0.4, 0.2])))
    each = objective(make_config, loss="lk_hybrid", lambda_scope="token", eta=2.0)
    assert not each.asks_for_alpha(NEVER)
    settings = each.settings(BEFORE)
    assert settings.lambda_K is None
    assert settings.eta == 2.0


def test_heads_weigh_by_decay_or_by_survival(make_config: MakeConfig) -> None:
    static_K = torch.tensor([1.0, 0.8, 0.64])
    ours = objective(make_config, head_decay=0.8)
    torch.testing.assert_close(ours.settings(BEFORE).head_weights_K, static_K)
    ours = objective(make_config, head_decay=0.8, head_weights="survival")
    torch.testing.assert_close(ours.settings(NEVER).head_weights_K, static_K)
    survival_K = torch.tensor([1.0, 0.5, 0.1])
    expected_K = survival_K * static_K.sum() / survival_K.sum()
    torch.testing.assert_close(ours.settings(BEFORE).head_weights_K, expected_K)


@pytest.mark.parametrize(("gamma", "decay"), [(7, 0.8669), (5, 0.8187), (4, 0.7788)])
def test_an_exponential_by_slot_is_a_decay(
    gamma: int, decay: float, make_config: MakeConfig
) -> None:
    """exp(-(k - 1) / gamma), as DFlash (by its block size) and DSpark (4) were trained."""
    weights_K = objective(make_config, head_decay=decay).settings(NEVER).head_weights_K
    slots_K = torch.arange(len(weights_K))
    torch.testing.assert_close(weights_K, torch.exp(-slots_K / gamma), rtol=2e-4, atol=0)


def test_starts_weigh_by_what_their_batch_measured(make_config: MakeConfig) -> None:
    assert not objective(make_config, head_weights="survival").weighs_starts
    ours = objective(make_config, head_weights="dpace", dpace_smoothing=0.25)
    assert ours.weighs_starts
    settings = ours.settings(BEFORE)
    torch.testing.assert_close(settings.head_weights_K, torch.tensor([1.0, 0.8, 0.64]))
    batch = rows_batch(torch.zeros(3, 4), [0, 1, 2], [[0], [1], [2]])
    measures_MKN = torch.zeros(len(MEASURES), 3, 1)
    measures_MKN[MEASURES.index("in_vocabulary")] = 1.0
    weights_KN = ours.of_batch(settings, measures_MKN, batch).weights_KN
    assert weights_KN is not None
    assert weights_KN.squeeze(1).tolist() == [3.0, 2.0, 1.0]
    in_doubt = ours.of_batch(settings, torch.zeros(len(MEASURES), 3, 1), batch).weights_KN
    assert in_doubt is not None
    assert in_doubt.squeeze(1).tolist() == [0.25 + 0.0625 + 0.015625, 0.0625 + 0.015625, 0.015625]


def test_survival_is_averaged_over_steps() -> None:
    first = NEVER.after([0.5, 0.25], [1.0, 0.5])
    assert first == Measured([0.5, 0.25], [1.0, 0.5])
    then = first.after([0.6, 0.3], [1.0, 0.7])
    assert then.alpha == [0.6, 0.3]
    assert then.survival is not None
    assert math.isclose(then.survival[1], 0.9 * 0.5 + 0.1 * 0.7)
