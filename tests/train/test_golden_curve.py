"""What 20 steps of each loss came to once; golden.py says how bits are compared."""

from pathlib import Path

import pytest

from tests.train.golden import LOSSES, curve, stored

RTOL = 1e-4
"""CPUs without AVX come within 1.4e-5 (ATEN_CPU_CAPABILITY=default, MKL_CBWR=COMPATIBLE)."""


def test_every_loss_has_a_curve() -> None:
    assert list(stored()) == list(LOSSES)


@pytest.mark.parametrize("loss", LOSSES)
def test_steps_and_weights_are_those_of_the_golden_run(
    loss: str, dump: Path, tmp_path: Path
) -> None:
    golden, ours = stored()[loss], curve(loss, dump, tmp_path / "run")
    assert ours.losses == pytest.approx(golden.losses, rel=RTOL)
    assert ours.norms == pytest.approx(golden.norms, rel=RTOL)
