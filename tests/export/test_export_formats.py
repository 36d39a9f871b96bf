"""`specpipe export` in both formats, with and without what the target could lend."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.export.run import run
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.verifier_head import load_embedding, load_lm_head
from specpipe.stages.train.run import run as train
from tests.validate.small import Trained

BOTH: tuple[str, ...] = ("speculators", "eagle3")


def short_run(trained: Trained, out: Path, **changes: Any) -> Path:
    settings = json.loads((trained.run / "config.json").read_text())
    changes = {"out": str(out), "max_steps": 1, "eval_every": 1, **changes}
    train(TrainConfig.model_validate(settings | changes))
    return out


@pytest.fixture(scope="module")
def untrained(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the whole vocabulary that leaves every weight as it was: the lm_head's, too."""
    out = tmp_path_factory.mktemp("untrained") / "run"
    return short_run(trained, out, draft_vocab_size=None, learning_rate=1e-30)


def exported(checkpoint: Path, out: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and tensors of an export that passes structure and replay."""
    run(ExportConfig(checkpoint=str(checkpoint), out=str(out), **settings))
    validation = json.loads((out / "validation.json").read_text())
    assert validation["passed"]
    assert validation["replay"]["passed"]
    folder = out / "checkpoint"
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def test_eagle3(trained: Trained, tmp_path: Path) -> None:
    config, tensors = exported(trained.run, tmp_path, format="eagle3")
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 3, 5]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 2, 4]
    assert {name for name in tensors if "layers.0" in name} == set()
    assert tensors["midlayer.self_attn.q_proj.weight"].shape == (32, 64)
    assert "embed_tokens.weight" not in tensors
    assert "layout `eagle3`" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("format", BOTH)
def test_with_the_targets_embedding(trained: Trained, tmp_path: Path, format: str) -> None:
    _, tensors = exported(trained.run, tmp_path, format=format, with_embedding=True)
    expected = load_embedding(Dump.open(str(trained.dump)).target_file)
    assert torch.equal(tensors["embed_tokens.weight"], expected)


@pytest.mark.parametrize("format", BOTH)
def test_without_the_lm_head(untrained: Path, tmp_path: Path, format: str) -> None:
    """The replay takes the target's, as an engine does."""
    config, tensors = exported(untrained, tmp_path, format=format, with_lm_head=False)
    assert "lm_head.weight" not in tensors
    assert config["draft_vocab_size"] == (None if format == "eagle3" else 96)


def test_a_lm_head_that_is_not_the_targets_stays(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = ExportConfig(checkpoint=str(trained.run), out=str(out), with_lm_head=False)
    with pytest.raises(ConfigError, match="it has 64 rows of 32, the target's 96 of 32"):
        run(config)
    whole = short_run(trained, tmp_path / "run", draft_vocab_size=None)
    with pytest.raises(ConfigError, match="it was trained, and is not the target's"):
        run(config.model_copy(update={"checkpoint": str(whole)}))
    assert not out.exists()


def test_the_lm_head_that_is_left_out_is_the_targets(trained: Trained, untrained: Path) -> None:
    (path,) = (untrained / "checkpoints").glob("*1/model.safetensors")
    expected = load_lm_head(Dump.open(str(trained.dump)).target_file)
    assert torch.equal(load_file(path)["lm_head.weight"].bfloat16(), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_layers": 2}, "2 layers"), ({"sliding_window": 9}, "a sliding window of 9")],
)
def test_eagle3_refuses_what_it_cannot_hold(
    trained: Trained, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    checkpoint = short_run(trained, tmp_path / "run", **changes)
    config = ExportConfig(checkpoint=str(checkpoint), out=str(tmp_path / "out"), format="eagle3")
    with pytest.raises(ConfigError, match=f"eagle3 cannot hold .*{words}.*--format speculators"):
        run(config)
    assert not (tmp_path / "out").exists()
