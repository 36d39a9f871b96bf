"""The demo's claim, small: lk_hybrid training on the sample target lifts the replayed tau."""

from pathlib import Path

import pytest

from specpipe.schemas.records.metrics import ReplayCurve
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.train.run import run as train
from tests.validate.small import sample_dump

K = 3


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dumps")
    for part, num_samples in (("train", 250), ("held_out", 80)):
        sample_dump(root, part, num_samples)
    return root


def replayed(dumps: Path, steps: int) -> tuple[ReplayCurve, ReplayCurve]:
    """(untrained, trained) tau at temperature 1 on the held-out answers."""
    result = train(
        TrainConfig(
            dump=str(dumps / "train"),
            eval_dump=str(dumps / "held_out"),
            out=str(dumps / f"run-{steps}"),
            loss="lk_hybrid",
            num_heads=K,
            draft_vocab_size=1024,
            max_steps=steps,
            batch_tokens=2048,
            eval_every=steps,
        )
    )
    assert result.best.replay_temperature_1.exact
    return result.untrained.replay_temperature_1, result.best.replay_temperature_1


@pytest.mark.slow
def test_training_lifts_tau_over_none_and_over_a_tenth(dumps: Path) -> None:
    untrained, tenth = replayed(dumps, 8)
    same, trained = replayed(dumps, 80)
    assert same == untrained
    for before in (untrained, tenth):
        # The intervals do not even touch, for any number of draft tokens.
        for low, high in zip(trained.tau_low, before.tau_high, strict=True):
            assert low > high
    assert trained.tau[K - 1] > 1.2
