"""scripts/bench_train at toy size: its tables come out and agree with each other. Never times."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.scripts.bench_tables import first, tables

REPOSITORY = Path(__file__).parents[2]


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
def test_speed_is_of_both_losses_and_optimisers(report: str) -> None:
    (rows,) = tables(report, "a. ")
    assert [row["side"] for row in rows] == ["ours, kl", "ours, lk_hybrid", "ours, kl, AdamW"]
    for row in rows:
        assert first(row["tokens/s"]) > 0
        assert row["ours / theirs"] == "-"
        # The target's 500 tokens are far from even, and so is what kl starts from.
        assert first(row["last loss"]) > 0


@pytest.mark.slow
def test_memory_stays_under_the_formula(report: str) -> None:
    (rows,) = tables(report, "c. ")
    (row,) = rows
    parts = [value for name, value in row.items() if name.endswith(", MiB")]
    bound = first(row["bound"].strip("*"))
    assert bound == pytest.approx(sum(map(first, parts)), abs=len(parts))
    assert 0 < first(row["measured"].strip("*")) <= bound
    assert "the peak in training is under the formula: met" in report


@pytest.mark.slow
def test_a_step_holds_its_products(report: str) -> None:
    floors, kinds = tables(report, "d. ")
    kl, hybrid = floors
    # Four texts of 32 tokens whose last 16 are supervised: head 1 has 16 starts in each, head 2 has
    # 15. Logits and two gradients of D = 500 times H = 128, and the verifier's logits.
    of_vocabulary = 2 * 500 * 128 * 4 * (3 * (16 + 15) + 16) / 1e9
    assert first(kl["GFLOP/step"]) > of_vocabulary
    # Lambda is of the step before: lk_hybrid asks for no product that kl does without.
    assert hybrid["GFLOP/step"] == kl["GFLOP/step"]
    for row in floors:
        assert first(row["GFLOP/s of the products"]) > 0
    for row in kinds:
        shares = [first(value) for value in list(row.values())[3:]]
        assert sum(shares) == pytest.approx(100, abs=1)
        assert first(row["matrix products with the vocabulary"]) > 0
