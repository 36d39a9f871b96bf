"""P-EAGLE in a real vLLM: the output is the target's, and the replay's tau is the engine's."""

from pathlib import Path

import pytest

from tests.drafters.engine_cell import served
from tests.drafters.peagle.conftest import training
from tests.validate.small import sample_dump


@pytest.mark.vllm
@pytest.mark.slow
def test_the_engine_accepts_what_the_replay_predicts(tmp_path: Path) -> None:
    config = training(
        sample_dump(tmp_path, "train", 120, "peagle"),
        tmp_path / "peagle-run",
        eval_dump=str(sample_dump(tmp_path, "held_out", 24, "peagle")),
        loss="kl",
        num_heads=3,
        layer_type="qwen3",
        draft_vocab_size=1024,
        max_steps=50,
        eval_every=50,
        batch_tokens=2048,
        learning_rate=2e-3,
        mask_token=None,
    )
    # Of a name that vLLM takes for EAGLE-1's, were it to guess (T13).
    greedy = served(config, tmp_path / "peagle-artifact").greedy
    assert greedy is not None
    assert greedy.tau_measured > 1.1
    assert greedy.acceptance_replayed == pytest.approx(greedy.acceptance_measured, abs=0.01)
    # Drafts of masked rows are accepted: an engine that chains them makes next to none (T12).
    assert greedy.acceptance_measured[1] > 0.01
