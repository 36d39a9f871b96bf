import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from specpipe.schemas.errors import ConfigError, IdentityError, IntegrityError, ValidationError
from specpipe.schemas.records.checkpoint import TrainResult
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.stages.export import run as export_run
from specpipe.stages.export.out_folder import LOCK_FILE
from specpipe.stages.export.run import run
from specpipe.stages.runs.checkpoint import Checkpoint, load_checkpoint
from specpipe.stages.runs.metric_rows import recorded_metrics
from specpipe.stages.target.files.location import TargetSource
from specpipe.stages.validate.replay import agreement
from specpipe.stages.validate.serve import run as serve
from tests.validate.small import Trained


def test_export_writes_artifact_card_and_validation(trained: Trained, exported: Path) -> None:
    config = json.loads((exported / "checkpoint" / "config.json").read_text())
    assert config["speculators_config"]["verifier"] == {
        "name_or_path": str(trained.target),
        "architectures": ["LlamaForCausalLM"],
    }
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 3, 5]
    assert config["draft_vocab_size"] == 64
    tensors = load_file(exported / "checkpoint" / "model.safetensors")
    assert tensors["lm_head.weight"].shape == (64, 32)
    validation = json.loads((exported / "validation.json").read_text())
    assert validation["passed"]
    assert validation["structure"]["passed"]
    assert validation["replay"]["passed"]
    assert validation["serve"] is None
    card = (exported / "README.md").read_text()
    assert "| vLLM versions tested | >=0.32,<0.34 |" in card
    assert "vllm serve" in card
    assert "Validation: passed" in card
    assert {p.name for p in exported.iterdir()} == {
        "checkpoint",
        "validation.json",
        "README.md",
        LOCK_FILE,
    }


def test_replay_of_the_files_is_the_trainers_evaluation(trained: Trained, exported: Path) -> None:
    replay = json.loads((exported / "validation.json").read_text())["replay"]
    best = TrainResult.model_validate_json((trained.run / "result.json").read_bytes()).best
    assert replay["compared_with"] == "recorded"
    assert replay["num_samples"] == best.num_samples
    assert replay["artifact"]["replay_temperature_1"]["tau"] == pytest.approx(
        best.replay_temperature_1.tau, rel=1e-3
    )
    assert replay["recorded_tau"]["replay_greedy"] == best.replay_greedy.tau
    assert replay["trained_tau"]["replay_greedy"] == pytest.approx(best.replay_greedy.tau)


def test_another_place_of_the_target_is_the_one_that_is_written(
    trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(ExportConfig(checkpoint=str(trained.run), out=str(out), target="org/model"))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "vllm serve org/model" in card
    config = json.loads((out / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    assert config["speculators_config"]["verifier"]["name_or_path"] == "org/model"


@pytest.mark.parametrize("level", ["structure", "replay", "serve"])
def test_a_target_of_other_weights_is_refused(trained: Trained, tmp_path: Path, level: str) -> None:
    other = Path(shutil.copytree(trained.target, tmp_path / "other"))
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    given = {"checkpoint": str(trained.run), "out": str(tmp_path / "out"), "target": str(other)}
    with pytest.raises(IdentityError, match=f"{other} is not .*: its weights differ"):
        run(ExportConfig(**given, validation=(level,)))
    assert not (tmp_path / "out").exists()


def test_the_same_weights_elsewhere_are_the_same_target(trained: Trained, tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained.target, tmp_path / "other"))
    out = tmp_path / "out"
    lines: list[str] = []
    config = ExportConfig(checkpoint=str(trained.run), out=str(out), target=str(other))
    assert run(config, progress=lines.append).levels == {"structure": True, "replay": True}
    assert not [line for line in lines if "not compared" in line]


def test_a_target_that_cannot_be_loaded_is_found_before_an_engine_starts(
    trained: Trained, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ConfigError("transformers cannot run it")

    monkeypatch.setattr("specpipe.stages.target.hf.backend.load_causal_lm", load)
    lines: list[str] = []
    with pytest.raises(ConfigError, match="transformers cannot run it"):
        serve.check(
            exported / "checkpoint",
            TargetSource(str(trained.target)),
            [[1, 2, 3], [4, 5, 6]],
            ExportConfig(checkpoint="-", out="-"),
            lines.append,
        )
    assert not [line for line in lines if "vLLM" in line]


def test_finished_export_does_nothing(trained: Trained, exported: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in exported.rglob("*")}
    result = run(ExportConfig(checkpoint=str(trained.run), out=str(exported)))
    assert result.did_nothing
    assert result.levels == {"structure": True, "replay": True}
    assert len(result.tau["replay_temperature_1"]) == 3
    assert set(result.rounding) == set(result.tau)
    assert result.draft_tokens == 3
    assert {p: p.stat().st_mtime_ns for p in exported.rglob("*")} == before


def test_damaged_artifact_is_written_again(
    trained: Trained, exported: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(exported, tmp_path / "out"))
    config = json.loads((exported / "validation.json").read_text())["config"]
    moved = ExportConfig.model_validate(config | {"out": str(out)})
    run(moved)
    (out / "checkpoint" / "model.safetensors").write_bytes(b"")
    assert not run(moved).did_nothing
    assert run(moved).did_nothing


def test_other_samples_are_compared_with_the_trainers_code(
    trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = ExportConfig(checkpoint=str(trained.run), out=str(out), replay_samples=2)
    run(config)
    replay = json.loads((out / "validation.json").read_text())["replay"]
    assert (replay["compared_with"], replay["num_samples"]) == ("recomputed", 2)


def test_single_checkpoint_outside_of_its_run(trained: Trained, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(trained.run / "checkpoints" / "step-00000006", tmp_path / "one")
    config = ExportConfig(checkpoint=str(checkpoint), out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="give --dump"):
        run(config)
    result = run(config.model_copy(update={"dump": str(trained.dump)}))
    assert result.levels == {"structure": True, "replay": True}


def test_failing_level_is_recorded_then_raised(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLOAT32_LIMIT", "FLOAT64_LIMIT"):
        monkeypatch.setattr(agreement, name, 0.0)
    out = tmp_path / "out"
    config = ExportConfig(checkpoint=str(trained.run), out=str(out))
    with pytest.raises(ValidationError, match="the files are not the trained drafter"):
        run(config)
    validation = json.loads((out / "validation.json").read_text())
    assert not validation["passed"]
    assert validation["structure"]["passed"]
    assert not validation["replay"]["passed"]
    assert "FAILED" in (out / "README.md").read_text()
    monkeypatch.undo()
    assert not run(config).did_nothing


def test_dump_of_another_target_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = load_checkpoint

    def of_another_target(path: Path) -> Checkpoint:
        loaded = original(path)
        target = loaded.state.target.model_copy(update={"weights_sha256": "0" * 64})
        return replace(loaded, state=loaded.state.model_copy(update={"target": target}))

    monkeypatch.setattr(export_run, "load_checkpoint", of_another_target)
    with pytest.raises(IdentityError, match="other weights"):
        run(ExportConfig(checkpoint=str(trained.run), out=str(tmp_path / "out")))


def test_damaged_checkpoint_is_refused(trained: Trained, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained.run, tmp_path / "run"))
    for path in copy.glob("checkpoints/*/model.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"model\.safetensors is damaged"):
        run(ExportConfig(checkpoint=str(copy), out=str(tmp_path / "out")))


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a checkpoint nor a run"):
        run(ExportConfig(checkpoint=str(tmp_path), out=str(tmp_path / "out")))


def test_torn_metrics(trained: Trained, tmp_path: Path) -> None:
    """A run that was killed while it wrote a line: the evaluations before it count."""
    copy = Path(shutil.copytree(trained.run, tmp_path / "run"))
    with (copy / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 9, "ev')
    path = copy / "checkpoints" / "step-00000006"
    state = load_checkpoint(path).state.model_copy(update={"best": None, "best_step": None})
    assert recorded_metrics(path, state) is not None
    later = state.model_copy(update={"step": 9})
    assert recorded_metrics(path, later) is None
