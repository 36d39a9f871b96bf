"""DFlash through the stages: trained, stopped and resumed, on two ranks, exported, converted."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from specpipe.schemas.drafters.dflash import DFlashShape
from specpipe.schemas.errors import ConfigError, UnfinishedError
from specpipe.stages.acceptance.measure_sums import MeasureSums
from specpipe.stages.acceptance.replay import replay
from specpipe.stages.drafters.scorer import TrainedDrafter
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.held_out import evaluation, run_settings
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.train.run import run as train
from tests.drafters.dflash.conftest import training
from tests.pipeline.in_process import specpipe
from tests.train.conftest import read_metrics, same_run
from tests.train.ranks.two_ranks import train as train_on_two_ranks
from tests.validate.artifacts import edit_config
from tests.validate.small import Trained


@pytest.mark.slow
def test_the_command_line_trains_exports_converts_and_reports(
    trained: Trained, tmp_path: Path
) -> None:
    """With causal blocks under a window, a head of its own and part of the vocabulary."""
    run, out = tmp_path / "run", tmp_path / "out"
    ended = specpipe(
        *("train", "--dump", trained.dump, "--out", run, "--drafter", "dflash", "--causal"),
        *("--sliding-window", "9", "--own-lm-head", "--draft-vocab-size", "64"),
        *("--num-layers", "1", "--num-heads", "5", "--anchors", "6", "--max-steps", "3"),
        *("--batch-tokens", "400", "--held-out-fraction", "0.3", "--json"),
    )
    assert ended.returncode == 0, ended.stderr
    shape = load_checkpoint(resolve_checkpoint(run)).shape
    assert isinstance(shape, DFlashShape)
    # The text holds the ids from 3 on.
    assert shape.mask_token in (0, 1, 2)
    assert (shape.block_size, shape.causal, shape.sliding_window) == (6, True, 9)
    ended = specpipe("export", "--checkpoint", run, "--out", out, "--format", "z-lab", "--json")
    assert ended.returncode == 0, ended.stderr
    assert ended.last_json["levels"] == {"structure": True, "replay": True}
    assert specpipe("report", "--run", run, "--out", tmp_path / "report.html").returncode == 0
    artifact = out / "checkpoint"
    config = json.loads((artifact / "config.json").read_text())
    assert config["dflash_config"]["target_layer_ids"] == [0, 1, 2, 3, 4]
    there, back = tmp_path / "there", tmp_path / "back"
    for source, to, format in ((artifact, there, "speculators"), (there, back, "z-lab")):
        ended = specpipe(
            "convert", source, "--out", to, "--format", format, "--target", trained.target
        )
        assert ended.returncode == 0, ended.stderr
    for name in ("config.json", "model.safetensors"):
        assert (back / name).read_bytes() == (artifact / name).read_bytes()
    ended = specpipe("validate", there, "--dump", trained.dump)
    assert ended.returncode == 0, ended.stderr
    ended = specpipe(
        *("train", "--dump", trained.dump, "--out", tmp_path / "more", "--drafter", "dflash"),
        *("--init-from", there, "--num-heads", "5", "--max-steps", "1", "--batch-tokens", "400"),
    )
    assert ended.returncode == 0, ended.stderr
    assert load_checkpoint(resolve_checkpoint(tmp_path / "more")).shape == shape


def test_a_stopped_run_goes_on_bit_for_bit(trained: Trained, tmp_path: Path) -> None:
    config = training(trained.dump, tmp_path / "stopped")
    asked: list[int] = []

    def stop_once(step: int, _total: int, figures: dict[str, float]) -> None:
        if step == 2 and "loss" in figures and not asked:
            asked.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(UnfinishedError, match="step 2 of 6"):
        train(config, progress=stop_once)
    train(config)
    same_run(trained.run, Path(config.out))


@pytest.mark.slow
def test_two_ranks_take_the_same_anchors(trained: Trained, tmp_path: Path) -> None:
    whole = training(trained.dump, tmp_path / "whole", pack_tokens=110)
    train(whole)
    both = training(trained.dump, tmp_path / "both", pack_tokens=110)
    codes, said = train_on_two_ranks(both)
    assert codes == [0, 0], said
    for ours, theirs in zip(read_metrics(both.out), read_metrics(whole.out), strict=True):
        if "eval" not in ours:
            assert ours["draft_loss"] == pytest.approx(theirs["draft_loss"], rel=2e-3)
        else:
            curves = [row["eval"]["replay_temperature_1"] for row in (ours, theirs)]
            assert curves[0]["tau"] == pytest.approx(curves[1]["tau"], rel=1e-2)


def test_the_lm_head_and_the_embedding_are_left_to_the_target(exported: Path) -> None:
    names = set(load_file(exported / "model.safetensors"))
    assert not names & {"lm_head.weight", "embed_tokens.weight", "d2t", "t2d"}
    assert {"fc.weight", "hidden_norm.weight", "norm.weight"} < names


def test_each_number_of_drafts_is_replayed_by_a_pass_of_its_own(trained: Trained) -> None:
    """T7, in the run's evaluation, in the report's scorer and at validation."""
    checkpoint = load_checkpoint(resolve_checkpoint(trained.run))
    settings = run_settings(checkpoint.path)
    assert settings is not None
    dump = Dump.open(str(trained.dump))
    reader, refs = evaluation(dump, settings)
    curves = []
    for num_heads in (2, 4):
        drafter = TrainedDrafter(checkpoint, dump)
        drafter.num_heads = num_heads
        sums = MeasureSums(num_heads, keep_spans=True)
        for scored in drafter.measure(reader.context_length, refs):
            assert len(scored.fewer) == num_heads - 1
            sums.add(scored.batch, scored.measures_MKN, scored.fewer)
        curves.append(replay(sums.sampled_spans, num_heads, exact=True).tau)
        assert not np.allclose(
            sums.sampled_spans[0].drafting(1), sums.sampled_spans[0].accept_RK[:, :1], rtol=1e-4
        )
    assert curves[1][:2] == pytest.approx(curves[0], rel=1e-6)
    evaluated = next(
        row["eval"]["replay_temperature_1"]["tau"]
        for row in read_metrics(trained.run)
        if "eval" in row and row["step"] == checkpoint.state.step
    )
    assert evaluated == pytest.approx(curves[1], rel=1e-4)


def test_a_dump_that_lacks_a_layer_is_refused_by_name(trained: Trained, tmp_path: Path) -> None:
    config = training(trained.dump, tmp_path / "run", layers=(1, 3))
    assert config.layers == (1, 3)  # named, they are taken
    settings = config.drafter
    with pytest.raises(ValueError, match=r"layer 2, 4.*--layers 1,2,3,4,5.*--layers 1,3,5"):
        settings.chosen_layers((1, 3, 5), 6)


def test_a_mask_token_that_the_text_holds_is_refused(trained: Trained, tmp_path: Path) -> None:
    """T22"""
    with pytest.raises(ConfigError, match="mask_token 5: the target writes it"):
        train(training(trained.dump, tmp_path / "run", mask_token=5))


def test_a_z_lab_artifact_of_another_writer_is_read(exported: Path, tmp_path: Path) -> None:
    """Full attention without a word of causality is bidirectional; a tied head is the target's."""
    theirs = tmp_path / "theirs"
    ended = specpipe("convert", exported, "--out", theirs, "--format", "z-lab")
    assert ended.returncode == 0, ended.stderr

    def as_z_lab_writes(config: dict[str, object]) -> None:
        nested = config["dflash_config"]
        assert isinstance(nested, dict)
        del nested["causal"], config["specpipe"], config["target_hidden_size"]
        config |= {
            "tie_word_embeddings": True,
            "sliding_window": None,
            "layer_types": ["full_attention"] * 2,
            "num_target_layers": 6,
        }

    edit_config(theirs, as_z_lab_writes)
    out = tmp_path / "out"
    target = json.loads((exported / "config.json").read_text())["speculators_config"]["verifier"]
    ended = specpipe(
        *("convert", theirs, "--out", out, "--format", "speculators"),
        *("--target", target["name_or_path"]),
    )
    assert ended.returncode == 0, ended.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["sliding_window_non_causal"] is True
    assert config["transformer_layer_config"]["dflash_config"] == {"causal": False}
