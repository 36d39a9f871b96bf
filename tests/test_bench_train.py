"""scripts/bench_train at toy size: its tables come out and agree with each other. Never times."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.bench_tables import first, tables

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of our side alone: the other one's environment is not a test's to install."""
    work = tmp_path_factory.mktemp("bench")
    command = ["scripts/bench_train", "--quick", "--alone", "--parts", "a,b,c,d"]
    ended = subprocess.run(
        [*command, "--work", str(work)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert ended.returncode == 0, ended.stderr
    assert list(work.iterdir()) == [], "files are left behind"
    return ended.stdout


@pytest.mark.slow
def test_speed_is_of_both_losses(report: str) -> None:
    (rows,) = tables(report, "a. ")
    assert [row["side"] for row in rows] == ["ours, kl", "ours, lk_hybrid"]
    for row in rows:
        assert first(row["tokens/s"]) > 0
        assert row["ours / theirs"] == "-"
        # The target's 500 tokens are far from even, and so is what kl starts from.
        assert first(row["last loss"]) > 0


@pytest.mark.slow
def test_memory_stays_under_the_formula(report: str) -> None:
    (rows,) = tables(report, "c. ")
    assert {row["loss"] for row in rows} == {"kl", "lk_hybrid"}
    for row in rows:
        parts = [value for name, value in row.items() if name.endswith(", MiB")]
        bound = first(row["bound"].strip("*"))
        assert bound == pytest.approx(sum(map(first, parts)), abs=len(parts))
        assert 0 < first(row["measured"].strip("*")) <= bound
    assert "the peak in training is under the formula: met" in report


@pytest.mark.slow
def test_a_step_holds_its_products(report: str) -> None:
    floors, kinds = tables(report, "d. ")
    for row in floors:
        # More than the products with the vocabulary that a head needs: logits and two gradients.
        # K = 2, D = 500, H = 128, 16 starts of each of 4 texts, whose last two are head 1's alone.
        least = 3 * 2 * 500 * 128 * 4 * (14 + 13) / 1e9
        assert first(row["GFLOP/step"]) >= round(least)
        assert first(row["step / products"].strip("*")) > 1
    for row in kinds:
        shares = [first(value) for value in list(row.values())[3:]]
        assert sum(shares) == pytest.approx(100, abs=1)
        assert first(row["matrix products with the vocabulary"]) > 0
