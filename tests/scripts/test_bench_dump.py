"""scripts/bench_dump at toy size: its tables come out and agree with each other. Never times."""

import subprocess
from pathlib import Path

import pytest

from tests.scripts.bench_tables import first, tables

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    work = tmp_path_factory.mktemp("bench")
    command = ["scripts/bench_dump", "--quick", "--parts", "b,c,d", "--work", str(work)]
    ended = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    assert list(work.iterdir()) == [], "files are left behind"
    return ended.stdout


@pytest.mark.slow
def test_writer_states_what_it_wrote(report: str) -> None:
    rows = {row["shard"]: row for row in tables(report, "b. ")[0]}
    assert {"zarr, final", "zarr, topk:64", "zarr, final, int8", "parquet, final"} <= rows.keys()
    for row in rows.values():
        assert first(row["writer, MB/s written"]) > 0
        assert first(row["writer / raw"]) > 0
    states, written = (first(rows["zarr, final"][c]) for c in ("states, MB", WRITTEN))
    # 2,048 tokens of three layers and 64 channels in bf16, half of them supervised.
    assert states == pytest.approx(2048 * (3 * 128 + 0.5 * (128 + 12)) / 1e6, rel=0.1)
    assert states <= written <= 1.3 * states
    for smaller in ("zarr, final, int8", "zarr, final, zstd"):
        assert first(rows[smaller][WRITTEN]) < written


@pytest.mark.slow
def test_readers_read_what_was_written(report: str) -> None:
    sequential, random = tables(report, "c. ")
    plain = [row for row in sequential if row["shards"] == "zarr, final"]
    assert {row["reader"] for row in plain} == {"read_all", "stream of the trainer"}
    assert {row["page cache"].split(":")[0] for row in plain} == {"warm", "cold"}
    written = {row["shard"]: first(row[WRITTEN]) for row in tables(report, "b. ")[0]}
    for row in sequential:
        if row["page cache"] == "warm":
            # Two shards, each as the writer's, but for the manifest.
            assert first(row["MB"]) == pytest.approx(2 * written[row["shards"]], rel=0.1)
    for row in random:
        used, read = first(row["MB used"]), first(row["MB read"])
        assert row["samples"].startswith("4 of ")
        assert 0 < used < read
        assert first(row["read / used"]) == pytest.approx(read / used, rel=0.1)


@pytest.mark.slow
def test_sizes_of_both_layouts_add_up(report: str) -> None:
    summary, parts = tables(report, "d. ")
    by_case = {row["conversations"]: row for row in summary}
    single, whole, by_turn = by_case.values()
    assert (single["number"], whole["number"]) == ("12", "4")
    assert (single["rows of theirs"], whole["rows of theirs"]) == ("12", "4")
    # A row for each of three turns.
    assert by_turn["rows of theirs"] == "12"
    assert whole["tokens"] == by_turn["tokens"]
    for name, row in by_case.items():
        of_case = [part for part in parts if part["conversations"] == name]
        for side in ("ours", "theirs"):
            total = sum(first(part[side]) for part in of_case)
            assert total == pytest.approx(first(row[f"{side}, bytes/token"]), abs=1)
        stored = {part["what"]: part for part in of_case}
        assert first(stored["auxiliary states"]["ours"]) == pytest.approx(3 * 2 * 192, abs=1)
        supervised = first(row["supervised"].rstrip("%")) / 100
        assert first(stored["final states"]["ours"]) == pytest.approx(384 * supervised, abs=3)
    for row in (single, whole):
        theirs = {
            part["what"]: first(part["theirs"])
            for part in parts
            if part["conversations"] == row["conversations"]
        }
        assert theirs["auxiliary states"] == 3 * 2 * 192
        assert theirs["final states"] == 2 * 192
    # History again and again: about (1 + 2 + 3) / 3 times as much.
    assert first(by_turn["theirs, bytes/token"]) > 1.7 * first(whole["theirs, bytes/token"])


WRITTEN = "written, MB and objects"
