"""Artifacts of DSpark that an engine would misread (V... of the reference)."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.artifact import OfTarget
from specpipe.stages.drafters.artifact_format import Drafter, TargetFacts
from specpipe.stages.drafters.dspark.architecture import ARCHITECTURE
from specpipe.stages.drafters.reading import read_artifact
from specpipe.stages.validate.serve.engine_support import check_served
from specpipe.stages.validate.structure import check
from tests.drafters.blocks import H, K, V, target_of, weights_of
from tests.drafters.dspark.test_forward import make_shape
from tests.validate.artifacts import edit_config, edit_tensors

FACTS = TargetFacts(
    architecture="LlamaForCausalLM",
    hidden_size=H,
    vocab_size=V,
    num_layers=6,
    max_position_embeddings=64,
)
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def artifact(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """In the format of the test's parameter."""
    name = getattr(request, "param", "speculators")
    shape, generator = make_shape(), torch.Generator().manual_seed(0)
    weights, target = weights_of(ARCHITECTURE, shape, generator), target_of(generator)
    format = ARCHITECTURE.formats[name]
    drafter = Drafter(shape, "target", "LlamaForCausalLM", K)
    tensors = ARCHITECTURE.artifact_tensors(shape, weights, {}, target)
    format.write(tmp_path, format.config(drafter), tensors)
    return tmp_path


@pytest.mark.parametrize("artifact", ["speculators", "dspark"], indirect=True)
def test_a_sound_artifact_has_no_problem(artifact: Path) -> None:
    found = check(artifact, FACTS, make_shape())
    assert found.passed, found.problems
    assert "0.27.1" in (found.engine or "")
    assert read_artifact(str(artifact)).shape == make_shape()


@pytest.mark.parametrize("artifact", ["speculators", "dspark"], indirect=True)
@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.update(sample_from_anchor=False), "sample_from_anchor is False"),  # V1, V2
        (lambda c: c.pop("sample_from_anchor"), "'sample_from_anchor' is missing"),
        (lambda c: c.update(dspark_block_size=4), "'dspark_block_size' is unknown"),  # V3
        (lambda c: c.pop("block_size"), "'block_size' is missing"),
        (lambda c: c.update(markov_head_type="rnn"), "markov_head_type is 'rnn'"),
        (
            lambda c: c.update(confidence_head_with_markov=False),
            "confidence_head_with_markov",
        ),  # V6
        (lambda c: c.update(enable_confidence_head=False), "confidence_head.* does not belong"),
        (lambda c: c.update(markov_rank=0), "markov_rank"),
        (
            lambda c: c.get("transformer_layer_config", c).update(max_position_embeddings=32),
            "drafts no further",
        ),  # V8
        (lambda c: c.pop("mask_token_id"), "'mask_token_id' is missing"),  # V7
        (
            lambda c: c.get("transformer_layer_config", c).pop("dflash_config"),
            "'dflash_config' is missing",
        ),  # V5
    ],
)
def test_wrong_configs(artifact: Path, edit: Edit, reason: str) -> None:
    edit_config(artifact, edit)
    assert re.search(reason, "\n".join(check(artifact, FACTS).problems))


@pytest.mark.parametrize("artifact", ["dspark"], indirect=True)
@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.update(dspark_bonus_anchor=True), "dspark_bonus_anchor is True"),  # V1
        (lambda c: c.update(architectures=["DSparkModel"]), "Qwen3DSparkModel"),  # V9
    ],
)
def test_wrong_plain_configs(artifact: Path, edit: Edit, reason: str) -> None:
    edit_config(artifact, edit)
    assert re.search(reason, "\n".join(check(artifact, FACTS, make_shape()).problems))


@pytest.mark.parametrize(
    "name",
    ["markov_head.markov_w2.weight", "markov_head.markov_w1.weight", "confidence_head.proj.bias"],
)
def test_an_engine_would_not_miss_a_tensor(artifact: Path, name: str) -> None:
    """V4: vLLM loads what is missing as whatever its memory holds."""
    edit_tensors(artifact, lambda t: t.pop(name))
    assert f"tensor {name} is missing" in "\n".join(check(artifact, FACTS, make_shape()).problems)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.pop("sample_from_anchor"), "anchor drafts nothing"),
        (lambda c: c.update(markov_head_type="gated"), "'gated' is not read"),
        (lambda c: c.update(markov_rank=5), "markov_rank is 5"),
        (lambda c: c.update(confidence_head_with_markov=False), "confidence does not see"),
    ],
)
def test_what_is_not_trained_here_is_not_read(artifact: Path, edit: Edit, reason: str) -> None:
    edit_config(artifact, edit)
    with pytest.raises(ConfigError, match=reason):
        read_artifact(str(artifact), OfTarget(V, H, None))


def test_no_engine_on_a_cpu_is_started_for_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="no GPU here: leave serve out"):
        check_served("LlamaForCausalLM", ARCHITECTURE.serving, ("serve",), print)
