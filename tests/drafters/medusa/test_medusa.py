"""Medusa's model beside its plain form, its gradient, its starts, its files.

Legend: K heads, N starts, H hidden size, V vocabulary.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specpipe.schemas.drafters.medusa import MedusaSettings, MedusaShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import ConvertConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.drafters.artifact import ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import Drafter, TargetFacts
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.medusa.architecture import ARCHITECTURE
from specpipe.stages.drafters.medusa.artifact import MedusaFormat
from specpipe.stages.drafters.medusa.model import Medusa
from specpipe.stages.drafters.medusa.proposal import PlainMedusa
from specpipe.stages.export.convert import run as convert
from specpipe.stages.samples.batch import make_batch
from specpipe.stages.samples.final_layer import with_final_layer
from specpipe.stages.samples.reader import SampleRef
from specpipe.stages.train.data.order import PlannedRead
from specpipe.stages.train.data.starts import chosen_starts
from specpipe.stages.validate import structure
from tests.drafters.toys import (
    Given,
    H,
    V,
    assert_slopes,
    double_batch,
    random_samples,
    verifier_of,
)

K, LAYERS = 2, 3
FACTS = TargetFacts(architecture="X", hidden_size=H, vocab_size=V, num_layers=LAYERS)
MASKS = ([0, 0, 1, 1, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1])


def shape_of(**changes: object) -> MedusaShape:
    shape = MedusaShape(
        target_hidden_size=H, vocab_size=V, draft_vocab_size=V, aux_layers=(LAYERS,),
        num_heads=K, num_layers=2, block_bias=True, own_lm_head=False,
    )  # fmt: skip
    return shape.model_copy(update=changes)


def given() -> Given:
    torch.manual_seed(0)
    norm = torch.nn.RMSNorm(H, eps=1e-5)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return Given(torch.randn(V, H), torch.randn(V, H), norm)


def drafter(shape: MedusaShape) -> Medusa:
    torch.manual_seed(1)
    return ARCHITECTURE.build(shape, given(), torch.arange(V), Runtime())


def written(shape: MedusaShape, folder: Path) -> Medusa:
    """The files of a drafter, and the drafter, rounded as they are."""
    model = drafter(shape)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16().float())
    tensors = ARCHITECTURE.artifact_tensors(shape, model.state_dict(), {}, given())
    format = MedusaFormat()
    format.write(folder, format.config(Drafter(shape, "t", "X", K)), tensors)
    return model


def changed(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("own", [True, False])
def test_the_model_is_its_plain_form(own: bool, tmp_path: Path) -> None:
    shape = shape_of(own_lm_head=own)
    model = written(shape, tmp_path).double()
    plain = PlainMedusa.load(tmp_path, given().final_norm).double()
    sample = with_final_layer(random_samples(MASKS[:1], given().lm_head_VH)[0])
    batch = make_batch([sample], K)
    hidden_KNH = model(batch)
    heads = model.heads()
    aux_TLH = batch.aux_TLH[:, -1:]
    for n, start in enumerate(batch.starts_N.tolist()):
        if not batch.emitted_N[n]:
            continue
        plain_K1H = plain.hidden(batch.input_ids_T, aux_TLH, start, start + 1, K)
        for k in range(K):
            ours = hidden_KNH[k, n] @ heads.of(k)[0].double().T
            theirs = plain.logits(plain_K1H[k], k + 1)[0]
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_its_first_drafts_are_what_the_target_says_next() -> None:
    shape = shape_of(own_lm_head=True)
    model, target = drafter(shape), given()
    ARCHITECTURE.initialise(model, None, None, target, None)  # type: ignore[arg-type]
    batch = make_batch([with_final_layer(s) for s in random_samples(MASKS, target.lm_head_VH)], K)
    normed_NH = target.final_norm(batch.aux_TLH[batch.starts_N, -1].float())
    for k, hidden_NH in enumerate(model(batch)):
        torch.testing.assert_close(hidden_NH, normed_NH)
        assert torch.equal(model.heads().of(k)[0], target.lm_head_VH)


def test_gradients_are_those_of_finite_differences() -> None:
    model, target = drafter(shape_of(own_lm_head=True)).double(), given()
    samples = [with_final_layer(s) for s in random_samples(MASKS, target.lm_head_VH)]
    batch = double_batch(samples, K)
    loss_of = HeadLoss(verifier_of(target.lm_head_VH.double(), range(V)), chunk_rows=4)

    settings = LossSettings({"kl": 1.0}, torch.ones(K), torch.zeros(K))

    def loss() -> torch.Tensor:
        return loss_of(model(batch), model.heads(), batch, settings)[0]

    assert_slopes(loss, model, 1e-6)


def test_a_start_reads_the_verifier_row_of_its_own_position() -> None:
    sample = random_samples(MASKS[:1], given().lm_head_VH)[0]
    batch = make_batch([with_final_layer(sample)], K)
    assert batch.final_SH is not None
    for n, start in enumerate(batch.starts_N.tolist()):
        state_H = batch.aux_TLH[start, -1]
        # Head 1 is held to the row after the start's own.
        own = int(batch.rows_KN[0, n]) - 1
        expected = batch.final_SH[own] if batch.emitted_N[n] else torch.zeros_like(state_H)
        assert torch.equal(state_H, expected)


def test_an_artifact_has_the_structure_that_vllm_reads(tmp_path: Path) -> None:
    for shape in (shape_of(), shape_of(own_lm_head=True, block_bias=False)):
        written(shape, tmp_path)
        assert structure.check(tmp_path, FACTS, shape).problems == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_attention_heads": 8}, "vLLM reads key 'num_attention_heads' as 'num_heads'"),
        ({"medusa_num_layers": 3}, "as 'num_hidden_layers'"),
        ({"truncated_vocab_size": 8}, "truncated_vocab_size is 8, but must be 23"),
        ({"original_lm_head": False}, "tensor lm_heads.0.weight is missing"),
        ({"medusa_fc_bias": False}, "tensor blocks.0.layers.0.bias does not belong here"),
        ({"num_heads": 3}, "tensor blocks.2.layers.0.weight is missing"),
        ({"num_heads": 10**9}, "less than or equal to 64"),
    ],
)
def test_traps_of_its_config_are_problems(
    changes: dict[str, object], word: str, tmp_path: Path
) -> None:
    written(shape_of(), tmp_path)
    changed(tmp_path, **changes)
    assert any(word in problem for problem in structure.check(tmp_path, FACTS).problems)


def test_a_draft_vocabulary_is_refused(tmp_path: Path) -> None:
    written(shape_of(), tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"token_map": torch.arange(8)}, path)
    assert any("token_map" in problem for problem in structure.check(tmp_path, FACTS).problems)
    config = json.loads((tmp_path / "config.json").read_text())
    files = ArtifactFiles(tmp_path, config, load_file(path))
    with pytest.raises(ConfigError, match="token_map"):
        ARCHITECTURE.read(files, None)


def test_the_authors_names_are_read() -> None:
    weights = {"0.0.linear.weight": torch.zeros(H, H), "0.0.linear.bias": torch.zeros(H)}
    weights |= {"0.1.weight": torch.zeros(V, H)}
    config = {"medusa_num_heads": 1, "medusa_num_layers": 1}
    files = ArtifactFiles(Path("x"), config, weights)
    assert ARCHITECTURE.recognises(files)
    read = ARCHITECTURE.read(files, OfTarget(V, H, (LAYERS,)))
    assert set(read.tensors) == {
        "blocks.0.layers.0.weight", "blocks.0.layers.0.bias", "lm_heads.0.weight"
    }  # fmt: skip
    assert read.shape == shape_of(num_heads=1, num_layers=1, own_lm_head=True)


def test_a_shared_head_must_be_the_targets(tmp_path: Path) -> None:
    written(shape_of(), tmp_path)
    files = ArtifactFiles(
        tmp_path,
        json.loads((tmp_path / "config.json").read_text()),
        load_file(tmp_path / "model.safetensors"),
    )
    artifact = ARCHITECTURE.read(files, None)
    assert "lm_head.weight" not in ARCHITECTURE.model_weights(artifact, given())
    other = replace(given(), lm_head_VH=torch.randn(V, H))
    with pytest.raises(ConfigError, match="of its own"):
        ARCHITECTURE.model_weights(artifact, other)


def test_its_settings() -> None:
    config = TrainConfig(dump="d", out="o", drafter="medusa")
    assert isinstance(config.drafter, MedusaSettings)
    assert config.eta == 10
    assert TrainConfig(dump="d", out="o", drafter="medusa", eta=2).eta == 2
    assert TrainConfig(dump="d", out="o").eta == 3
    assert not config.drafter.samples_drafts


def test_a_start_before_a_span_has_no_state_to_learn_from() -> None:
    config = TrainConfig(dump="d", out="o", drafter="medusa")
    refs = [SampleRef(0, 0, 10, "p")]
    read = PlannedRead(None, refs, is_sparse=False, step=1)  # type: ignore[arg-type]
    sample = with_final_layer(random_samples(MASKS[:1], given().lm_head_VH)[0])
    batch = make_batch([sample], K, choose=chosen_starts(config, read))
    everything = make_batch([sample], K)
    assert bool(batch.emitted_N.all())
    assert not bool(everything.emitted_N.all())
    kept = everything.starts_N[everything.emitted_N]
    assert torch.equal(batch.starts_N, kept)


def test_more_draft_tokens_than_heads_are_refused(tmp_path: Path) -> None:
    shape, folder = shape_of(), tmp_path / "artifact"
    folder.mkdir()
    written(shape, folder)
    sound = (folder / "config.json").read_text()
    for tokens, words in ((shape.num_heads + 1, f"it has {shape.num_heads}"), ("x", "positive")):
        config = json.loads(sound)
        config["specpipe"]["speculative_tokens"] = tokens
        (folder / "config.json").write_text(json.dumps(config))
        assert any(words in problem for problem in structure.check(folder, FACTS).problems)
    (folder / "config.json").write_text(sound.replace(f'tokens": {K}', 'tokens": 1'))
    assert structure.check(folder, FACTS).problems == []
    given = {"source": str(folder), "out": str(tmp_path / "out"), "format": "medusa"}
    with pytest.raises(ConfigError, match=f"speculative_tokens 99: it has {shape.num_heads}"):
        convert(ConvertConfig(**given, speculative_tokens=99))
    assert not (tmp_path / "out").exists()
