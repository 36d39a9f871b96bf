"""Dumps of every logits mode train, and are evaluated and replayed by the same rules."""

from pathlib import Path

import pytest

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.checkpoint import TrainResult
from specpipe.stages.train.run import run
from tests.train.conftest import VOCAB, MakeConfig, MakeDump


def trained(make_dump: MakeDump, make_config: MakeConfig, logits: str, out: Path) -> TrainResult:
    dump = make_dump(logits=logits)
    return run(make_config(dump=str(dump), out=str(out), max_steps=6, batch_tokens=600))


def test_every_mode_trains_towards_final(
    make_dump: MakeDump, make_config: MakeConfig, tmp_path: Path
) -> None:
    final = trained(make_dump, make_config, "final", tmp_path / "final")
    assert final.draft_loss_last < final.draft_loss_first
    taus, masses = {}, {}
    for logits in ("full", f"topk:{VOCAB}", "topk:8"):
        result = trained(make_dump, make_config, logits, tmp_path / logits.replace(":", ""))
        assert result.draft_loss_last < result.draft_loss_first
        taus[logits] = result.best.replay_temperature_1.tau[-1]
        masses[logits] = result.best.attainable_mass
    tau, mass = final.best.replay_temperature_1.tau[-1], final.best.attainable_mass
    assert taus["full"] == pytest.approx(taus[f"topk:{VOCAB}"], abs=2e-3)
    assert taus["full"] == pytest.approx(tau, abs=0.02)
    assert masses["full"] == pytest.approx(mass, abs=0.01)
    assert masses["topk:8"] < masses["full"]


def test_the_loss_of_states_wants_final_states_as_wide_as_the_drafter(
    make_dump: MakeDump, make_config: MakeConfig
) -> None:
    topk = make_dump(logits="topk:8")
    with pytest.raises(ConfigError, match=r"state_loss: the dump holds logits topk:8"):
        run(make_config(dump=str(topk), state_loss=1.0))
    with pytest.raises(ConfigError, match=r"state_loss: the drafter is 48 wide, the target 32"):
        run(make_config(hidden_size=48, state_loss=1.0))


def test_the_loss_of_states_draws_outputs_to_the_targets(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """As far as a training is from the target's states, that much more the loss of states tells."""
    config = make_config(max_steps=6)
    plain, drawn = (
        run(config.model_copy(update={"out": str(tmp_path / str(weight)), "state_loss": weight}))
        for weight in (0.0, 100.0)
    )
    assert plain.draft_loss_first == drawn.draft_loss_first
    assert plain.draft_loss_last != drawn.draft_loss_last
