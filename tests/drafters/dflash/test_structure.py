"""Artifacts of DFlash that an engine would misread (the traps of the reference, T...)."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specpipe.schemas.drafters.dflash import DFlashShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.dflash.architecture import ARCHITECTURE
from specpipe.stages.drafters.reading import read_artifact
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.validate.structure import check
from tests.drafters.dflash.test_forward import make_shape
from tests.pipeline.in_process import specpipe
from tests.validate.artifacts import edit_config, edit_tensors
from tests.validate.small import Trained

FACTS = TargetFacts(architecture="LlamaForCausalLM", hidden_size=32, vocab_size=96, num_layers=6)
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "artifact"))


def layer(**changes: Any) -> Edit:
    return lambda config: config["transformer_layer_config"].update(changes)


def test_a_sound_artifact_has_no_problem(trained: Trained, artifact: Path) -> None:
    shape = load_checkpoint(resolve_checkpoint(trained.run)).shape
    found = check(artifact, FACTS, shape)
    assert found.passed, found.problems
    assert "FLASH_ATTN" in (found.engine or "")  # T20


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.update(sliding_window_non_causal=False), "for all layers"),  # T5
        (lambda c: c.pop("sliding_window_non_causal"), "'sliding_window_non_causal' is missing"),
        (lambda c: c.update(sample_from_anchor=True), "sample_from_anchor is True"),  # T14
        (lambda c: c.pop("sample_from_anchor"), "'sample_from_anchor' is missing"),
        (lambda c: c.update(mask_token_id=96), r"mask_token_id 96 is not in 0\.\.95"),  # T22
        (lambda c: c.pop("aux_hidden_state_layer_ids"), "'aux_hidden_state_layer_ids' is missing"),
        (lambda c: c.update(aux_hidden_state_layer_ids=[1, 2, 3, 4, 7]), r"within 1\.\.6"),
        (
            layer(layer_types=["full_attention", "sliding_attention"], sliding_window=8),
            "one kind of attention",
        ),  # T23
        (layer(model_type="llama"), "qwen3"),
        (layer(dflash_config={}), "'causal' is missing"),
        (layer(dflash_config={"causal": True}), "sliding_window_non_causal is True"),
        (layer(dflash_config={"causal": "no"}), "causal is 'no', but must be true or false"),
        (lambda c: c.update(speculators_model_type="eagle3"), "must be 'dflash'"),
    ],
)
def test_wrong_configs(trained: Trained, artifact: Path, edit: Edit, reason: str) -> None:
    edit_config(artifact, edit)
    shape = load_checkpoint(resolve_checkpoint(trained.run)).shape
    assert re.search(reason, "\n".join(check(artifact, FACTS, shape).problems))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda t: t.pop("hidden_norm.weight"), "hidden_norm.weight is missing"),
        (
            lambda t: t.update({"mask_hidden": torch.zeros(1, 1, 160)}),
            "mask_hidden does not belong",
        ),
        (lambda t: t.pop("layers.1.self_attn.k_norm.weight"), "k_norm.weight is missing"),
    ],
)
def test_wrong_tensors(artifact: Path, edit: Edit, reason: str) -> None:
    edit_tensors(artifact, edit)
    assert re.search(reason, "\n".join(check(artifact, FACTS).problems))


def _with_window(config: dict[str, Any]) -> None:
    """As speculators writes it by default, of a run of ours."""
    layers = config["transformer_layer_config"]
    del layers["dflash_config"], config["specpipe"]
    layers |= {"layer_types": ["sliding_attention"] * 2, "sliding_window": 8}
    config["sliding_window_non_causal"] = False


def test_an_artifact_of_speculators_is_read_as_it_was_trained(artifact: Path) -> None:
    """T5: its full layers are bidirectional whatever the key says, and those with a window as it
    says; where it says nothing, nobody knows."""
    edit_config(artifact, _with_window)
    shape = read_artifact(str(artifact)).shape
    assert isinstance(shape, DFlashShape)
    assert shape.causal is True
    assert shape.sliding_window == 8
    edit_config(artifact, lambda c: c.pop("sliding_window_non_causal"))
    with pytest.raises(ConfigError, match="does not say sliding_window_non_causal"):
        read_artifact(str(artifact))
    edit_config(artifact, layer(layer_types=["full_attention"] * 2))
    edit_config(artifact, lambda c: c.update(sliding_window_non_causal=False))
    shape = read_artifact(str(artifact)).shape
    assert isinstance(shape, DFlashShape)
    assert shape.causal is False
    edit_config(artifact, layer(layer_types=["full_attention", "sliding_attention"]))
    with pytest.raises(ConfigError, match="both full and sliding"):  # T23
        read_artifact(str(artifact))


def test_a_drafter_of_a_wrong_window_or_with_too_many_drafts_is_refused() -> None:
    for settings, reason in (
        ({"sliding_window": 7, "num_heads": 7}, "does not reach beyond a block of 8"),
        ({"num_heads": 16}, "has 15"),
        ({"num_layers": 9}, "less than or equal to 8"),
        ({"hidden_size": 64}, "hidden_size is a setting of a drafter"),
    ):
        with pytest.raises(ValueError, match=reason):
            TrainConfig(dump="d", out="o", drafter="dflash", **settings)


def test_a_shape_goes_there_and_back() -> None:
    shape = make_shape(causal=True, sliding_window=6)
    assert type(shape).model_validate_json(shape.model_dump_json()) == shape
    problems = ARCHITECTURE.stored_problems(make_shape(mask_token=40), {})
    assert "mask token 40" in "; ".join(problems)


def test_an_embedding_that_is_not_the_targets_is_refused(trained: Trained, artifact: Path) -> None:
    edit_tensors(artifact, lambda t: t.update({"embed_tokens.weight": torch.ones(96, 32)}))
    ended = specpipe("validate", artifact, "--dump", trained.dump)
    assert ended.returncode == 4
    assert "embedding is its own" in ended.stderr
