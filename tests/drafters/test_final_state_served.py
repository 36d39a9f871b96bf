"""EAGLE-1 and Medusa in a real vLLM: drafts lose nothing, and are accepted as replayed."""

from pathlib import Path

import pytest

from specpipe.schemas.settings.train import TrainConfig
from tests.drafters.engine_cell import served
from tests.validate.small import sample_dump


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["eagle1", "medusa"])
def test_the_engine_accepts_what_the_replay_predicts(drafter: str, tmp_path: Path) -> None:
    """At temperature 0 and 1; Medusa's drafts are greedy at both."""
    config = TrainConfig(
        dump=str(sample_dump(tmp_path, "train", 120, drafter)),
        eval_dump=str(sample_dump(tmp_path, "held_out", 40, drafter)),
        out=str(tmp_path / "run"),
        device="cpu",
        drafter=drafter,
        num_heads=3,
        max_steps=60,
        eval_every=60,
        batch_tokens=2048,
    )
    found = served(config, tmp_path / "served")
    assert found.greedy is not None
    assert found.greedy.tau_measured > 1.05
