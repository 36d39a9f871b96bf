"""Artifacts of P-EAGLE that an engine would misread (the traps of the reference, T...)."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.artifact_format import Drafter, TargetFacts
from specpipe.stages.drafters.peagle.architecture import ARCHITECTURE
from specpipe.stages.drafters.reading import read_artifact
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.train.run import run as train
from specpipe.stages.validate.structure import check
from tests.drafters.peagle.conftest import training
from tests.drafters.peagle.toys import shape_of
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
    assert "vLLM 0.20 or newer, with parallel_drafting" in (found.engine or "")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        # T10: without it, or with another, vLLM's llama layer takes fc for 3 auxiliary layers.
        (lambda c: c["transformer_layer_config"].pop("num_aux_hidden_states"), "is missing"),
        (layer(num_aux_hidden_states=4), "num_aux_hidden_states is 4, but must be 3"),
        # T11: the default of type peagle is not that of type eagle3; two norms are passed over.
        (lambda c: c.pop("norm_before_residual"), "'norm_before_residual' is missing"),
        (lambda c: c.update(norm_before_residual=False), "but the drafter was trained with True"),
        (lambda c: c.update(fc_norm=True), "fc_norm is on: vLLM passes over it"),
        (lambda c: c.update(norm_output=True), "norm_output is on: vLLM passes over it"),
        (lambda c: c.pop("mask_token_id"), "'mask_token_id' is missing"),
        (lambda c: c.update(mask_token_id=96), r"mask token 96 is not in 0\.\.95"),
        (lambda c: c.update(mask_token_id=3), "mask_token is 3, but the drafter was trained with"),
        # T12: as an EAGLE-3 drafter it is loaded, and drafts one token well.
        (lambda c: c.update(speculators_model_type="eagle3"), "must be 'peagle'"),
        (layer(model_type="gemma"), "vLLM has no such P-EAGLE layer"),
        (layer(sliding_window=8), r"layer_types None must be \['sliding_attention'\]"),
        (lambda c: c.update(eagle_aux_hidden_state_layer_ids=[5, 3, 1]), "must ascend"),
    ],
)
def test_wrong_configs(trained: Trained, artifact: Path, edit: Edit, reason: str) -> None:
    edit_config(artifact, edit)
    shape = load_checkpoint(resolve_checkpoint(trained.run)).shape
    assert re.search(reason, "\n".join(check(artifact, FACTS, shape).problems))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda t: t.pop("mask_hidden"), "mask_hidden is missing"),
        (lambda t: t.update(mask_hidden=torch.zeros(1, 1, 32)), r"must be float \[1, 1, 96\]"),
        (lambda t: t.update(fc_norm=torch.zeros(3)), "fc_norm does not belong here"),
        (lambda t: t.pop("layers.0.hidden_norm.weight"), "hidden_norm.weight is missing"),
        (lambda t: t["mask_hidden"].fill_(torch.nan), "mask_hidden holds NaN"),
    ],
)
def test_wrong_tensors(
    trained: Trained, artifact: Path, edit: Callable[[dict[str, Tensor]], object], reason: str
) -> None:
    edit_tensors(artifact, edit)
    shape = load_checkpoint(resolve_checkpoint(trained.run)).shape
    assert re.search(reason, "\n".join(check(artifact, FACTS, shape).problems))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.update(fc_norm=True), "vLLM passes over"),
        (lambda c: c.pop("mask_token_id"), "does not say 'mask_token_id'"),
        (lambda c: c.update(target_hidden_size=64), "as wide as its target"),
        (lambda c: c.pop("eagle_aux_hidden_state_layer_ids"), "give --target"),
    ],
)
def test_what_cannot_be_read_is_refused(artifact: Path, edit: Edit, reason: str) -> None:
    edit_config(artifact, edit)
    with pytest.raises(ConfigError, match=reason):
        read_artifact(str(artifact))


def test_an_artifact_without_the_state_of_masked_rows_is_refused(artifact: Path) -> None:
    edit_tensors(artifact, lambda t: t.pop("mask_hidden"))
    with pytest.raises(ConfigError, match="lacks mask_hidden"):
        read_artifact(str(artifact))


def test_the_layers_settings_name_the_number_of_aux_layers_in_both_formats() -> None:
    """T10."""
    shape = shape_of(aux_layers=(1, 2, 3, 5))
    drafter = Drafter(shape, "target", "LlamaForCausalLM", 7)
    nested = ARCHITECTURE.formats["speculators"].config(drafter)["transformer_layer_config"]
    flat = ARCHITECTURE.formats["peagle"].config(drafter)
    assert nested["num_aux_hidden_states"] == flat["num_aux_hidden_states"] == 4
    assert flat["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3, 5]
    assert flat["architectures"] == ["LlamaForCausalLMEagle3"]


def test_an_engine_is_told_the_method_and_to_draft_in_parallel() -> None:
    """T12 and T13: vLLM guesses the method by the artifact's path, and takes `peagle-x` for
    EAGLE-1. The card and the engine of `serve` say both (test_peagle_stages, test_peagle_served).
    """
    assert ARCHITECTURE.serving.method == "eagle3"
    assert dict(ARCHITECTURE.serving.options) == {"parallel_drafting": True}
    assert ARCHITECTURE.settings.samples_drafts


def test_a_mask_token_that_the_target_writes_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the target writes it"):
        train(training(trained.dump, tmp_path / "run", mask_token=5))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="a drafter peagle has 15"):
        training(Path("d"), Path("o"), num_heads=16)
    with pytest.raises(ValueError, match="less than or equal to 4"):
        training(Path("d"), Path("o"), num_layers=5)
    assert training(Path("d"), Path("o"), num_heads=15).num_heads == 15
