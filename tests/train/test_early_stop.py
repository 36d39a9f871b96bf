"""Training that ends where tau rises no more."""

import json
from pathlib import Path

import pytest

from specpipe.schemas.errors import UnfinishedError
from specpipe.stages.train.run import run
from tests.train.conftest import MakeConfig, read_metrics, same_run

# A rate this small moves no tau: the first evaluation is the best one.
STILL = {"learning_rate": 1e-30, "early_stop": 2, "eval_every": 2, "max_steps": 12}


def test_a_run_whose_tau_stands_still_ends_early_and_well(make_config: MakeConfig) -> None:
    result = run(make_config(**STILL))
    assert (result.steps, result.best_step, result.stopped_early) == (6, 2, True)
    evaluations = [row["step"] for row in read_metrics(result.out) if "eval" in row]
    assert evaluations == [0, 2, 4, 6]
    written = json.loads((Path(result.out) / "result.json").read_text())
    assert written["stopped_early"] is True
    assert (Path(result.out) / "latest").read_text() == "step-00000006"
    assert run(make_config(**STILL)) == result.model_copy(update={"did_nothing": True})


def test_stopped_on_the_way_it_ends_at_the_same_step(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    whole, broken = (make_config(**STILL, out=str(tmp_path / name)) for name in ("a", "b"))
    run(whole)
    for _ in range(5):
        with pytest.raises(UnfinishedError):
            run(broken.model_copy(update={"time_limit": 1e-6}))
    assert run(broken).steps == 6
    same_run(Path(whole.out), Path(broken.out))
    # Killed after the last checkpoint and before result.json.
    (Path(broken.out) / "result.json").unlink()
    assert run(broken).steps == 6
    same_run(Path(whole.out), Path(broken.out))


def test_a_run_whose_tau_rises_goes_on(make_config: MakeConfig) -> None:
    result = run(make_config(early_stop=1, eval_every=6, max_steps=12))
    assert (result.steps, result.stopped_early) == (12, False)
