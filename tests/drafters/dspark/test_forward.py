"""DSpark in training against the plain one: two implementations, one mathematics."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specpipe.schemas.drafters.dspark import DSparkShape
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.heads import logits_of
from specpipe.stages.acceptance.loss.measures import NUM_MEASURES
from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.dspark.architecture import ARCHITECTURE
from specpipe.stages.drafters.dspark.model import DSpark, initialise_heads
from specpipe.stages.samples.batch import make_batch
from tests.drafters.blocks import (
    SHAPE,
    D,
    H,
    K,
    V,
    model_of,
    sample_of,
    target_of,
    weights_of,
)
from tests.drafters.toys import ExactRotary, assert_slopes

R = 6


def make_shape(**changes: Any) -> DSparkShape:
    values = SHAPE | {"block_size": K, "markov_rank": R, "confidence": True}
    return DSparkShape(**values).model_copy(update=changes)


def make_model(shape: DSparkShape, seed: int) -> DSpark:
    generator = torch.Generator().manual_seed(seed)
    weights, target = weights_of(ARCHITECTURE, shape, generator), target_of(generator)
    model = model_of(ARCHITECTURE, shape, weights, target, torch.arange(V)).double()
    model.rotary = ExactRotary(shape)  # type: ignore[assignment]
    assert isinstance(model, DSpark)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"draft_vocab_size": D},
        {"own_lm_head": True, "confidence": False},
        {"causal": True, "sliding_window": 6},
    ],
    ids=str,
)
def test_plain_drafter_equals_the_trained_one(changes: dict[str, Any], tmp_path: Path) -> None:
    """In float64, for every format, from files; the confidence too."""
    shape = make_shape(**changes)
    generator = torch.Generator().manual_seed(0)
    target, weights = target_of(generator), weights_of(ARCHITECTURE, shape, generator)
    size = shape.draft_vocab_size
    ids_D = torch.randperm(V, generator=generator)[:size].sort().values
    vocab = {"d2t": ids_D - torch.arange(size), "t2d": torch.isin(torch.arange(V), ids_D)}
    tensors = ARCHITECTURE.artifact_tensors(shape, weights, vocab, target)
    sample = sample_of(shape, generator)
    batch = make_batch([sample], K)
    model = model_of(ARCHITECTURE, shape, weights, target, ids_D).double()
    model.rotary = ExactRotary(shape)  # type: ignore[assignment]
    with torch.no_grad():
        outputs_KNX = model(batch)
    used_KN = batch.rows_KN >= 0
    first, last = int(batch.starts_N[0]), int(batch.starts_N[-1]) + 1
    aux_TLH = torch.from_numpy(sample.states.aux_TLH).view(torch.bfloat16)
    heads = model.heads().ready_for(outputs_KNX)
    for format in ARCHITECTURE.formats.values():
        folder = tmp_path / format.name
        folder.mkdir()
        format.write(folder, format.config(Drafter(shape, "target", "X", K)), tensors)
        plain = ARCHITECTURE.proposal(folder, target).double()
        ids_T = torch.from_numpy(sample.input_ids)
        hidden_KNX = plain.hidden(ids_T, aux_TLH, first, last, K)
        for k in range(K):
            ours, theirs = outputs_KNX[k, used_KN[k]], hidden_KNX[k, used_KN[k]]
            torch.testing.assert_close(
                plain.logits(theirs, k + 1), logits_of(ours, heads.of(k)), rtol=1e-4, atol=1e-4
            )
            if shape.confidence:
                assert isinstance(model, DSpark)
                with torch.no_grad():
                    confidence = model.confidence_head(ours).sigmoid()
                torch.testing.assert_close(
                    plain.confidence(theirs), confidence, rtol=1e-4, atol=1e-4
                )


def test_a_fresh_drafter_has_no_bias_and_an_even_confidence() -> None:
    model = make_model(make_shape(), 1)
    initialise_heads(model)
    assert not model.markov_head.markov_w2.weight.any()
    assert float(model.markov_head.markov_w1.weight.detach().std()) == pytest.approx(
        R**-0.5, rel=0.2
    )
    with torch.no_grad():
        assert not model.confidence_head(torch.randn(3, H + R, dtype=torch.float64)).any()
    frozen, bias = model.heads().blocks
    assert (frozen.requires_grad, bias.requires_grad) == (False, True)


def test_gradients_are_those_of_finite_differences() -> None:
    """Of every parameter, of a loss with the confidence's part, in float64."""
    shape = make_shape()
    model = make_model(shape, 2)
    generator = torch.Generator().manual_seed(3)
    batch = make_batch([sample_of(shape, generator)], K)
    batch = replace(batch, weights_N=batch.weights_N.double())
    of = Denominators.of(batch, torch.arange(V))
    N = len(batch.starts_N)
    measures_MKN = torch.rand(NUM_MEASURES, K, N, generator=generator, dtype=torch.float64)
    weights_KND = torch.randn(K, N, V, generator=generator, dtype=torch.float64)

    def loss() -> torch.Tensor:
        outputs_KNX = model(batch)
        hidden_RX, blocks = outputs_KNX.flatten(0, 1), model.heads().ready_for(outputs_KNX).of(0)
        parts = hidden_RX.split([H, R], dim=1)
        logits = sum(x @ block.T for x, block in zip(parts, blocks, strict=True))
        extra = model.extra_loss(batch, outputs_KNX, measures_MKN, of)
        assert extra is not None
        out: torch.Tensor = (logits.view_as(weights_KND) * weights_KND).sum() + 10 * extra
        return out

    assert_slopes(loss, model, 1e-4)


def test_the_confidence_learns_the_acceptance() -> None:
    """Its loss is least where it says alpha, whatever the batch is a part of."""
    shape = make_shape()
    model = make_model(shape, 4)
    batch = make_batch([sample_of(shape, torch.Generator().manual_seed(5))], K)
    of = Denominators.of(batch, torch.arange(V))
    outputs_KNX = torch.zeros(K, len(batch.starts_N), H + R, dtype=torch.float64)
    measures_MKN = torch.full((NUM_MEASURES, *outputs_KNX.shape[:2]), 0.3, dtype=torch.float64)
    losses = {}
    for said in (0.2, 0.3, 0.4):
        with torch.no_grad():
            model.confidence_head.proj.bias.fill_(torch.logit(torch.tensor(said)))
        loss = model.extra_loss(batch, outputs_KNX, measures_MKN, of)
        assert loss is not None
        losses[said] = float(loss.detach())
    assert min(losses, key=losses.__getitem__) == 0.3
    entropy = -(0.3 * torch.tensor(0.3).log() + 0.7 * torch.tensor(0.7).log())
    assert losses[0.3] == pytest.approx(float(entropy), rel=1e-5)
    whole = model.extra_loss(batch, outputs_KNX, measures_MKN, of + of)
    assert whole is not None
    assert float(whole.detach()) == pytest.approx(losses[0.4] / 2)


def test_muon_takes_no_table() -> None:
    model = make_model(make_shape(), 6)
    matrices = {name for name, p in model.named_parameters() if model.is_matrix(name, p)}
    assert "fc.weight" in matrices
    assert not any(name.startswith(("markov", "confidence")) for name in matrices)
