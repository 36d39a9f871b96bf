"""EAGLE-1's model beside its plain form, its gradient, its files.

Legend: K heads, H hidden size, V vocabulary.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specpipe.schemas.drafters.eagle1 import Eagle1Settings, Eagle1Shape
from specpipe.schemas.errors import ConfigError
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.drafters.artifact import ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import Drafter, TargetFacts
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.eagle1.architecture import ARCHITECTURE
from specpipe.stages.drafters.eagle1.artifact import EagleFormat
from specpipe.stages.drafters.eagle1.model import Eagle1
from specpipe.stages.drafters.registry import recognised
from specpipe.stages.samples.batch import make_batch
from specpipe.stages.validate import structure
from tests.drafters.toys import (
    ExactRotary,
    Given,
    H,
    V,
    assert_slopes,
    double_batch,
    random_samples,
    shape_of,
    verifier_of,
)

K, LAYERS = 3, 4
FACTS = TargetFacts(architecture="X", hidden_size=H, vocab_size=V, num_layers=LAYERS)
MASKS = ([0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1])


def given() -> Given:
    torch.manual_seed(0)
    norm = torch.nn.RMSNorm(H, eps=1e-5)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return Given(torch.randn(V, H), torch.randn(V, H), norm)


def shape_with(num_layers: int) -> Eagle1Shape:
    fields = shape_of().model_dump()
    kept = {name: fields[name] for name in Eagle1Shape.model_fields if name in fields}
    kept |= {"architecture": "eagle1", "aux_layers": (LAYERS,), "num_layers": num_layers}
    return Eagle1Shape(**kept)


def drafter(num_layers: int = 2, regression: float = 0.0) -> Eagle1:
    torch.manual_seed(1)
    settings = Eagle1Settings(feature_regression=regression)
    model = ARCHITECTURE.build(
        shape_with(num_layers), given(), torch.arange(V), Runtime(settings=settings)
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight).div(3).bfloat16().float())
    return model


def written(folder: Path, *, with_embedding: bool = False) -> Eagle1:
    model, format = drafter(), EagleFormat()
    tensors = ARCHITECTURE.artifact_tensors(
        model.shape, model.state_dict(), {}, given(), with_embedding=with_embedding
    )
    format.write(folder, format.config(Drafter(model.shape, "t", "X", K)), tensors)
    return model


def files_of(folder: Path) -> ArtifactFiles:
    config = json.loads((folder / "config.json").read_text())
    return ArtifactFiles(folder, config, load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("exact", [True, False])
def test_the_model_is_its_plain_form(
    exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = written(tmp_path)
    plain = ARCHITECTURE.proposal(tmp_path, given())
    if exact:
        rotary = ExactRotary(model.shape)
        model.rotary = rotary  # type: ignore[assignment]
        model, plain = model.double(), plain.double()
        angles = lambda _, at: tuple(t[None, :, 0] for t in rotary(at, torch.float64))  # noqa: E731
        monkeypatch.setattr(type(plain), "rope", angles)
    limit = 1e-11 if exact else 2e-4
    batch = make_batch(random_samples(MASKS[:1], given().lm_head_VH), K)
    with torch.no_grad():
        hidden_KNH = model(batch)
    for n, start in enumerate(batch.starts_N.tolist()):
        plain_K1H = plain.hidden(batch.input_ids_T, batch.aux_TLH, start, start + 1, K)
        for k in range(K):
            if batch.rows_KN[k, n] < 0:
                continue
            ours_1V = hidden_KNH[k, n : n + 1] @ model.heads().of(k)[0].to(hidden_KNH.dtype).T
            theirs_1V = plain.logits(plain_K1H[k], k + 1)
            torch.testing.assert_close(ours_1V, theirs_1V, rtol=limit, atol=limit)


def test_gradients_are_those_of_finite_differences() -> None:
    model, target = drafter(regression=0.5).double(), given()
    model.rotary = ExactRotary(model.shape)  # type: ignore[assignment]
    batch = double_batch(random_samples(MASKS, target.lm_head_VH), K)
    loss_of = HeadLoss(verifier_of(target.lm_head_VH.double(), range(V)), chunk_rows=4)
    settings = LossSettings({"kl": 1.0}, torch.ones(K), torch.zeros(K))

    def loss() -> torch.Tensor:
        outputs = model(batch)
        total, measures = loss_of(outputs, model.heads(), batch, settings)
        of = Denominators.of(batch, torch.arange(V))
        further = model.extra_loss(batch, outputs, measures, of)
        assert further is not None
        return total + further

    assert_slopes(loss, model, 1e-5)


def test_an_artifact_has_the_structure_that_vllm_reads(tmp_path: Path) -> None:
    for with_embedding in (False, True):
        model = written(tmp_path, with_embedding=with_embedding)
        assert structure.check(tmp_path, FACTS, model.shape).problems == []
        files = files_of(tmp_path)
        assert recognised(files).name == "eagle1"
        read = ARCHITECTURE.read(files, None)
        assert read.shape == model.shape
        assert ARCHITECTURE.model_weights(read, given()).keys() == model.state_dict().keys()


@pytest.mark.parametrize("fc", [None, torch.ones(H, H)])
def test_what_is_wrong_with_fc_is_said(fc: torch.Tensor | None, tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["fc.weight"]
    save_file(tensors if fc is None else tensors | {"fc.weight": fc}, path)
    assert any("fc.weight" in found for found in structure.check(tmp_path, FACTS).problems)
    assert recognised(files_of(tmp_path)).name == "eagle1"


@pytest.mark.parametrize(
    ("name", "tensor", "problem", "refusal"),
    [
        ("fc.bias", torch.ones(H), "fc.bias does not belong", "drops without a word"),
        ("lm_head.weight", torch.ones(V, H), "on which vLLM fails", "leave it out"),
    ],
)
def test_tensors_that_vllm_drops_or_fails_on(
    name: str, tensor: torch.Tensor, problem: str, refusal: str, tmp_path: Path
) -> None:
    written(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {name: tensor}, path)
    assert any(problem in found for found in structure.check(tmp_path, FACTS).problems)
    with pytest.raises(ConfigError, match=refusal):
        ARCHITECTURE.read(files_of(tmp_path), None)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: c.update(draft_vocab_size=8), "'draft_vocab_size' is unknown"),
        (lambda c: c.update(model_type="qwen3"), "model_type is 'qwen3'"),
        (lambda c: c.update(attention_bias=True), "attention_bias is True"),
        (lambda c: c["specpipe"].update(target_layers=3), "target_layers is 3, but must be 4"),
    ],
)
def test_traps_of_its_config_are_problems(
    change: Callable[[dict[str, object]], None], word: str, tmp_path: Path
) -> None:
    written(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    assert any(word in found for found in structure.check(tmp_path, FACTS).problems)


def test_a_published_checkpoint_is_read(tmp_path: Path) -> None:
    """As EAGLE-2's and HASS's repositories write it: its own embedding, no word of its target."""
    model = written(tmp_path, with_embedding=True)
    files = files_of(tmp_path)
    config = {n: v for n, v in files.config.items() if n not in ("specpipe", "head_dim")}
    config |= {"rope_theta": 50.0, "bias": False, "head_dim": model.shape.head_dim}
    other = ArtifactFiles(tmp_path, config, files.tensors)
    assert recognised(other).name == "eagle1"
    with pytest.raises(ConfigError, match="give --target"):
        ARCHITECTURE.read(other, None)
    read = ARCHITECTURE.read(other, OfTarget(V, H, (LAYERS,)))
    assert read.shape == model.shape
