"""What an MTP drafter cannot be made of is said, with what to do about it."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.artifact_format import Drafter, TargetFacts
from specpipe.stages.drafters.mtp.architecture import ARCHITECTURE
from specpipe.stages.drafters.mtp.shape import shape_of_config
from specpipe.stages.dump import worker
from specpipe.stages.target.head.mtp_layer import mtp_bytes
from specpipe.stages.validate import structure
from tests.drafters.mtp.targets import LAYERS, TARGETS, VOCAB
from tests.drafters.mtp.test_cli import FLAGS, done, dump_of
from tests.drafters.mtp.test_stitch import save_artifact
from tests.pipeline.in_process import specpipe
from tests.train.conftest import write_dump

STEPS = [*FLAGS, "--max-steps", "1"]
FACTS = TargetFacts(
    architecture="MiMoForCausalLM", hidden_size=32, vocab_size=VOCAB, num_layers=LAYERS
)


@pytest.mark.slow
def test_a_dump_of_an_earlier_version_says_to_make_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "save_mtp", lambda *_: None)
    dump = dump_of(tmp_path, "mimo")
    ended = specpipe("train", "--dump", dump, "--out", tmp_path / "run", *STEPS)
    assert ended.returncode == 2
    assert "specpipe dump" in ended.stderr
    assert "--fresh-layer" in ended.stderr
    done(specpipe("train", "--dump", dump, "--out", tmp_path / "new", *STEPS, "--fresh-layer"))


def test_a_target_without_a_layer_is_given_a_fresh_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dump = dump_of(tmp_path, "mimo", with_mtp=False)
    record = json.loads((dump / "target" / "mtp.json").read_text())
    assert (record["num_layers"], record["tensors"]) == (0, [])
    assert not (dump / "target" / "mtp.safetensors").exists()
    done(specpipe("train", "--dump", dump, "--out", tmp_path / "run", *STEPS))
    assert "a fresh one is trained" in caplog.text


def test_a_dump_without_the_last_layer_names_it(tmp_path: Path) -> None:
    dump = dump_of(tmp_path, "mimo", layers="1,2")
    ended = specpipe("train", "--dump", dump, "--out", tmp_path / "run", *STEPS)
    assert ended.returncode == 2
    assert "layer 3" in ended.stderr
    assert "--layers" in ended.stderr


def test_a_target_of_another_family_is_refused(tmp_path: Path) -> None:
    dump = write_dump(tmp_path, layers=(4,))
    assert not (dump / "target" / "mtp.json").exists()
    ended = specpipe("train", "--dump", dump, "--out", tmp_path / "run", *STEPS)
    assert ended.returncode == 2
    assert "none of the families" in ended.stderr


@pytest.mark.parametrize("family", TARGETS)
def test_the_artifact_says_one_layer_whatever_the_target_has(family: str) -> None:
    """T17: with more, engines do not agree which layer drafts which step."""
    config = TARGETS[family]
    key = shape_of_config(config).of.count_key
    shape = shape_of_config({**config, key: 3})
    written = ARCHITECTURE.formats["mtp"].config(Drafter(shape, "t", "X", 3))
    assert written[key] == 1
    nested = {"model_type": config["model_type"], "architectures": config["architectures"]}
    shape = shape_of_config({**nested, "text_config": {**config, key: 3}})
    assert shape.target_config["text_config"][key] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_nextn_predict_layers": 2}, "must be 1"),
        ({"hidden_size": 64}, "hidden_size is 64"),
        ({"specpipe": {}}, "number of draft tokens"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "is not that of a target"),
    ],
)
def test_a_config_that_engines_take_otherwise_is_named(
    change: dict[str, object], says: str, tmp_path: Path
) -> None:
    save_artifact(tmp_path / "artifact", "mimo", seed=0)
    shape = shape_of_config(TARGETS["mimo"])
    found = structure.check(tmp_path / "artifact", FACTS, shape)
    assert found.passed, found.problems
    path = tmp_path / "artifact" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found = structure.check(tmp_path / "artifact", FACTS, shape)
    assert any(says in problem for problem in found.problems), found.problems


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    save_artifact(tmp_path / "artifact", "glm4_moe", seed=0)
    path = tmp_path / "artifact" / "model.safetensors"
    tensors = load_file(path)
    del tensors[f"model.layers.{LAYERS}.mlp.experts.2.up_proj.weight"]
    save_file(tensors, path)
    shape = shape_of_config(TARGETS["glm4_moe"])
    facts = FACTS.model_copy(update={"architecture": "Glm4MoeForCausalLM"})
    (problem,) = structure.check(tmp_path / "artifact", facts, shape).problems
    assert "experts.2.up_proj.weight is missing" in problem


def test_layers_other_than_the_last_are_refused() -> None:
    from specpipe.stages.drafters.mtp.shape import check_layers

    shape = shape_of_config(TARGETS["mimo"])
    with pytest.raises(ConfigError, match="give --layers 3"):
        check_layers(shape, (1, 3))


def test_plan_counts_what_the_dump_stores_of_the_layer(tmp_path: Path) -> None:
    dump = dump_of(tmp_path, "glm4_moe")
    written = (dump / "target" / "mtp.safetensors").stat().st_size
    num_files, num_bytes = mtp_bytes(tmp_path / "target")
    assert num_files == 2
    assert 0.9 * written < num_bytes < written
