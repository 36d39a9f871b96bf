"""Medusa through the command line: from a dump of any layers, its drafts greedy throughout."""

import json
from pathlib import Path

import pytest

from tests.pipeline.in_process import Ended, specpipe
from tests.train.conftest import read_metrics, write_dump

pytestmark = pytest.mark.slow


def train(dump: Path, out: Path, *more: str) -> Ended:
    flags = "--device cpu --drafter medusa --num-heads 2 --batch-tokens 300 --max-steps 6"
    flags += " --held-out-fraction 0.2 --eval-every 3 --checkpoint-every 6"
    return specpipe("train", "--dump", dump, "--out", out, *flags.split(), *more)


def done(ended: Ended) -> Ended:
    assert ended.returncode == 0, ended.stderr
    return ended


def test_any_dump_will_do_and_drafts_are_greedy_at_every_temperature(tmp_path: Path) -> None:
    usual, last = tmp_path / "usual", tmp_path / "last"
    for folder in (usual, last):
        folder.mkdir()
    dump = write_dump(usual, num_samples=40)
    told = done(train(dump, usual / "run")).stderr
    assert "tau, greedy draft, temp. 1" in told
    assert "tau, temperature 1" not in told
    assert json.loads((usual / "run" / "config.json").read_text())["eta"] == 10
    for row in read_metrics(usual / "run"):
        if "eval" in row:
            assert row["eval"]["replay_temperature_1"] == row["eval"]["replay_greedy_draft"]

    # The rows of the last layer's output are those of the final state.
    done(train(write_dump(last, num_samples=40, layers=(4,)), last / "run"))
    assert read_metrics(usual / "run") == read_metrics(last / "run")
    for state in (usual / "run", last / "run"):
        done(specpipe("export", "--checkpoint", state, "--out", state.parent / "out"))
    one, other = (
        (folder / "out" / "checkpoint" / "model.safetensors").read_bytes()
        for folder in (usual, last)
    )
    assert one == other

    card = (usual / "out" / "README.md").read_text()
    for words in (
        "It drafts greedily at every temperature",
        "| temperature 1, drafts greedy",
        "vLLM 0.33 serves no Medusa",
    ):
        assert words in card
    assert "probabilistic" not in card
    assert "drafts sampled" not in card
    page = tmp_path / "page.html"
    done(specpipe("report", "--run", usual / "run", "--artifact", usual / "out", "--out", page))
    assert "temperature 1, drafts greedy" in page.read_text()
    assert "drafts sampled" not in page.read_text()


def test_a_dump_without_final_states_and_a_draft_vocabulary_are_refused(tmp_path: Path) -> None:
    dump = write_dump(tmp_path, num_samples=20, logits="topk:8")
    ended = train(dump, tmp_path / "run")
    assert ended.returncode == 2
    assert "it takes layer 4, which the dump lacks" in ended.stderr
    ended = train(dump, tmp_path / "run", "--layers", "1")
    assert ended.returncode == 2
    assert "takes layer 4 alone" in ended.stderr
    ended = train(write_int8(tmp_path), tmp_path / "run", "--draft-vocab-size", "64")
    assert ended.returncode == 2
    assert "drafts from the whole vocabulary" in ended.stderr


def write_int8(folder: Path) -> Path:
    """Its auxiliary states are in 8 bits, its final states are not."""
    (folder / "int8").mkdir()
    return write_dump(folder / "int8", num_samples=20, states="int8")


def test_it_trains_from_a_dump_of_eight_bits(tmp_path: Path) -> None:
    done(train(write_int8(tmp_path), tmp_path / "run", "--own-lm-head"))
    done(specpipe("export", "--checkpoint", tmp_path / "run", "--out", tmp_path / "out"))
