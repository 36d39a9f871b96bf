"""DFlash in a real vLLM: drafts lose nothing, and are accepted as the replay predicts."""

from pathlib import Path

import pytest

from tests.drafters.dflash.conftest import training
from tests.drafters.engine_cell import served
from tests.validate.small import sample_dump


@pytest.mark.vllm
@pytest.mark.slow
def test_the_engine_accepts_what_the_replay_predicts(tmp_path: Path) -> None:
    """Two layers, whose norms differ (T1), blocks that are not causal (T20)."""
    config = training(
        sample_dump(tmp_path, "train", 160, "dflash"),
        tmp_path / "run",
        eval_dump=str(sample_dump(tmp_path, "held_out", 40, "dflash")),
        num_heads=3,
        draft_vocab_size=1024,
        max_steps=60,
        eval_every=60,
        batch_tokens=2048,
        anchors=64,
    )
    greedy = served(config, tmp_path / "served").greedy
    assert greedy is not None
    assert greedy.tau_measured > 1.05
    assert greedy.acceptance_replayed == pytest.approx(greedy.acceptance_measured, abs=0.015)
