import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specpipe.schemas.drafters.eagle3 import Eagle3Shape
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.eagle3.architecture import ARCHITECTURE
from specpipe.stages.drafters.eagle3.layout import PLAIN
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.validate.replay import run as replay_check
from specpipe.stages.validate.structure import check
from tests.validate.artifacts import Config, Tensors, edit_config, edit_tensors
from tests.validate.small import Trained

FACTS = TargetFacts(architecture="LlamaForCausalLM", hidden_size=32, vocab_size=96, num_layers=6)


def problems(artifact: Path) -> str:
    return "\n".join(check(artifact, FACTS).problems)


def test_sound_artifact_has_no_problem(trained: Trained, artifact: Path) -> None:
    shape = load_checkpoint(resolve_checkpoint(trained.run)).shape
    findings = check(artifact, FACTS, shape)
    assert findings.passed, findings.problems
    assert findings.num_tensors == 15


def _swap_two_ids(tensors: Tensors) -> None:
    ids = tensors["d2t"] + torch.arange(len(tensors["d2t"]))
    ids[[4, 5]] = ids[[5, 4]]
    tensors["d2t"] = ids - torch.arange(len(ids))


def _forget_a_token(tensors: Tensors) -> None:
    tensors["t2d"][tensors["t2d"].nonzero()[0]] = False


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda t: t.pop("norm.weight"), "tensor norm.weight is missing"),
        (_swap_two_ids, "ascending target ids"),
        (_forget_a_token, "do not describe the same draft vocabulary: 1 tokens"),
        (
            lambda t: t.update({"embed_tokens.weight": torch.zeros(64, 32)}),
            r"embed_tokens.weight is .* float \[96, 32\]",
        ),
    ],
)
def test_wrong_tensors(artifact: Path, edit: Callable[[Tensors], object], reason: str) -> None:
    edit_tensors(artifact, edit)
    assert re.search(reason, problems(artifact))


def _layer(config: Config, **changes: object) -> None:
    config["transformer_layer_config"].update(changes)


def test_the_engine_that_a_drafter_needs_is_named(exported: Path, trained: Trained) -> None:
    plain = load_checkpoint(resolve_checkpoint(trained.run)).shape
    assert isinstance(plain, Eagle3Shape)
    assert ARCHITECTURE.needed_engine(plain).startswith(
        "vLLM 0.11.1 or newer; in the format eagle3"
    )
    for switches, version in (
        (["norm_before_residual"], "vLLM 0.11.1 or newer, for norm_before_residual"),
        (["norm_before_residual", "norm_before_fc"], "vLLM 0.20 or newer, for norm_before_res"),
        (["norm_before_fc", "norm_output"], "vLLM 0.25 or newer, for norm_before_fc, norm_output"),
        (["fc_norm"], "vLLM 0.25 or newer, for fc_norm"),
    ):
        said = ARCHITECTURE.needed_engine(plain.model_copy(update=dict.fromkeys(switches, True)))
        assert said.startswith(version)
    several = plain.model_copy(update={"num_layers": 2, "layer_type": "qwen3"})
    assert "the norms of qwen3 layers, 2 layers" in ARCHITECTURE.needed_engine(several)
    assert f"| engine | {PLAIN} |" in (exported / "README.md").read_text()
    structure = json.loads((exported / "validation.json").read_text())["structure"]
    assert structure["engine"] == PLAIN


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.pop("eagle_aux_hidden_state_layer_ids"), "layer_ids' is missing"),
        (lambda c: c.update(eagle_aux_hidden_state_layer_ids=[5, 3, 1]), "must ascend"),
        (lambda c: c.update(eagle_aux_hidden_state_layer_ids=None), "NoneType"),
        (lambda c: c.update(draft_vocab_size=65), r"lm_head\.weight is .* float \[65, 32\]"),
        (lambda c: c.update(draft_vocab_size=97), r"not in 1\.\.96"),
        (lambda c: c.update(norm_before_fc=True), r"tensor input_norm\.weight is missing"),
        (lambda c: c.update(norm_befor_fc=True), "'norm_befor_fc' is unknown"),
        (lambda c: c.update(target_hidden_size=64), "target_hidden_size is 64, but must be 32"),
        (lambda c: c["transformer_layer_config"].pop("head_dim"), "'head_dim' is missing"),
        (
            lambda c: _layer(c, model_type="qwen3"),
            r"layers\.0\.self_attn\.k_norm\.weight is missing",
        ),
        (lambda c: _layer(c, num_hidden_layers=2), r"layers\.1\.mlp\.up_proj\.weight is missing"),
        (lambda c: _layer(c, num_hidden_layers=0), "num_layers is 0, not positive"),
        (
            lambda c: _layer(c, sliding_window=8),
            r"layer_types None must be \['sliding_attention'\]",
        ),
        (lambda c: _layer(c, layer_types=["sliding_attention"]), "must be None"),
        (lambda c: _layer(c, hidden_size=16), r"tensor embed_tokens\.weight is missing"),
        (
            lambda c: c["speculators_config"].update(proposal_methods=[]),
            "speculators_config does not say",
        ),
        (
            lambda c: c["transformer_layer_config"]["rope_parameters"].update(mrope_section=[2, 2]),
            "have mrope_section, which rope type 'default' does not have",
        ),
    ],
)
def test_wrong_config(artifact: Path, edit: Callable[[Config], object], reason: str) -> None:
    edit_config(artifact, edit)
    assert re.search(reason, problems(artifact))


def test_a_drafter_that_would_shorten_the_servers_texts(artifact: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    edit_config(artifact, lambda c: _layer(c, max_position_embeddings=512))
    longer = FACTS.model_copy(update={"max_position_embeddings": 1024})
    assert check(artifact, longer).passed  # vLLM raises it to the target's
    edit_config(artifact, lambda c: c["transformer_layer_config"]["rope_parameters"].update(yarn))
    (problem,) = check(artifact, longer).problems
    assert "max_position_embeddings is 512, but the target's is 1024" in problem
    assert check(artifact, FACTS.model_copy(update={"max_position_embeddings": 512})).passed


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (
            lambda c: c.update(eagle_aux_hidden_state_layer_ids=[2, 3, 5]),
            r"aux_layers is \(2, 3, 5\), but the drafter was trained with \(1, 3, 5\)",
        ),
        (
            lambda c: c["transformer_layer_config"]["rope_parameters"].update(rope_theta=5e5),
            "rope_parameters is .*500000.* trained with .*10000",
        ),
        (lambda c: c.update(norm_before_residual=True), "norm_before_residual is True"),
    ],
)
def test_setting_that_differs_from_training(
    trained: Trained, artifact: Path, edit: Callable[[Config], object], reason: str
) -> None:
    shape = load_checkpoint(resolve_checkpoint(trained.run)).shape
    edit_config(artifact, edit)
    assert re.search(reason, "\n".join(check(artifact, FACTS, shape).problems))


def _foreign_norm(tensors: Tensors) -> None:
    """Another model's final norm."""
    tensors["norm.weight"] = torch.linspace(-2, 2, 32, dtype=torch.bfloat16)


def _shift_vocabulary(tensors: Tensors) -> None:
    """A map of its own that is consistent, but not the trained one."""
    tensors["d2t"] = torch.full((64,), 32)
    tensors["t2d"] = torch.arange(96) >= 32


@pytest.mark.parametrize(
    ("edit_weights", "edit_settings"),
    [
        (_foreign_norm, None),
        (_shift_vocabulary, None),
        (None, lambda c: c.update(norm_before_residual=True)),
        (None, lambda c: c.update(eagle_aux_hidden_state_layer_ids=[1, 2, 4])),
    ],
    ids=["final norm", "foreign d2t", "residual", "layers"],
)
def test_replay_refuses_what_has_the_right_structure(
    trained: Trained,
    artifact: Path,
    edit_weights: Callable[[Tensors], object] | None,
    edit_settings: Callable[[Config], object] | None,
) -> None:
    if edit_weights:
        edit_tensors(artifact, edit_weights)
    if edit_settings:
        edit_config(artifact, edit_settings)
    assert check(artifact, FACTS).passed
    checkpoint = load_checkpoint(resolve_checkpoint(trained.run))
    findings = replay_check.check(artifact, checkpoint, Dump.open(str(trained.dump)), None, None)
    assert not findings.passed
