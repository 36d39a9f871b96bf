"""What a step trains on, and its gradients.

Legend: K heads, N starts.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from specpipe.schemas.drafters.peagle import PeagleSettings
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.peagle.architecture import ARCHITECTURE
from specpipe.stages.drafters.peagle.model import Peagle
from specpipe.stages.drafters.peagle.sampling import rows_per_anchor, thinned
from specpipe.stages.samples.batch import Batch, Rows, make_batch
from tests.drafters.peagle.toys import MASK, embedding, random_weights, shape_of
from tests.drafters.toys import V, assert_slopes, bytes_saved, random_sample, random_samples

K = 4
MASKS = [[0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1, 1]]
SETTINGS = PeagleSettings(anchors=4)


def batch_of(settings: PeagleSettings | None) -> Batch:
    """Thinned, or whole; no text holds the mask token, whose row there gets no gradient."""
    samples = random_samples(MASKS, embedding(1))
    samples = [
        replace(s, input_ids=np.where(s.input_ids == MASK, MASK + 1, s.input_ids)) for s in samples
    ]
    rng = np.random.default_rng(0)
    choose = None if settings is None else lambda _, rows_KN, __: thinned(settings, rows_KN, rng)
    return make_batch(samples, K, choose=choose)


def model_of(**changes: object) -> Peagle:
    model = Peagle(shape_of(**changes), embedding(), Runtime(attention="reference"))  # type: ignore[arg-type]
    random_weights(model, 0)
    return model.double()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 2},
        {
            "layer_type": "qwen3",
            "sliding_window": 3,
            "norm_before_residual": False,
            "norm_before_fc": False,
        },
    ],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(changes: dict[str, object]) -> None:
    model, batch = model_of(**changes), batch_of(SETTINGS)
    used_KN = batch.rows_KN >= 0
    generator = torch.Generator().manual_seed(1)
    size = (*used_KN.shape, model.shape.hidden_size)
    weight_KNH = torch.randn(size, generator=generator, dtype=torch.float64)
    weight_KNH *= used_KN[..., None]

    def loss() -> torch.Tensor:
        out: torch.Tensor = (model(batch) * weight_KNH).sum()
        return out

    assert_slopes(loss, model, 1e-5, 1e-5, leave_out=("lm_head.weight",))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_thinned_batch_computes_what_the_whole_one_does(recompute: bool) -> None:
    model = model_of(num_layers=2)
    model.recompute = recompute
    whole, thin = batch_of(None), batch_of(SETTINGS)
    assert int((thin.rows_KN >= 0).sum()) < int((whole.rows_KN >= 0).sum())
    with torch.no_grad():
        whole_KNH = model(whole)
    thin_KNH = model(thin)
    assert torch.equal(thin.starts_N, whole.starts_N)
    used_KN = thin.rows_KN >= 0
    torch.testing.assert_close(thin_KNH[used_KN], whole_KNH[used_KN])
    # Nothing is computed that no loss uses.
    assert not thin_KNH[1:][~used_KN[1:]].any()


def test_masked_rows_may_be_computed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(num_layers=2), batch_of(None)
    with torch.no_grad():
        together_KNH = model(batch)
        monkeypatch.setattr("specpipe.stages.drafters.peagle.model.MOST_ROWS", 5)
        torch.testing.assert_close(model(batch), together_KNH)


def test_a_batch_without_masked_rows_still_gives_every_gradient() -> None:
    model, batch = model_of(), batch_of(PeagleSettings(anchors=1, depth_ratio=1e-9, depth_floor=0))
    assert int((batch.rows_KN[1:] >= 0).sum()) == 0
    model(batch).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["lm_head.weight"]
    assert not model.mask_hidden.grad.any()  # type: ignore[union-attr]


def test_the_choice_is_a_function_of_its_generator_and_a_start_is_kept_from_the_top() -> None:
    valid_KN = np.ones((8, 4000), dtype=np.bool_)
    valid_KN[5:, ::2] = False
    settings = PeagleSettings(anchors=1000)
    one, same, other = (thinned(settings, valid_KN, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one[0].all()
    assert not (one & ~valid_KN).any()
    assert not (one[1:] & ~one[:-1]).any()
    counts = one.sum(axis=1).tolist()
    assert counts[1:5] == [700, 490, 343, 240]
    assert 80 <= counts[5] <= 160  # of 240 about half have a token to draft
    assert counts[6:] == [counts[5]] * 2
    everything = PeagleSettings(anchors=10**6, depth_ratio=1.0)
    assert np.array_equal(thinned(everything, valid_KN, np.random.default_rng(0)), valid_KN)
    assert rows_per_anchor(settings, 8) == pytest.approx(0.7 + 0.49 + 0.343 + 0.2401 + 0.2 * 3)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_plan_knows_what_is_kept_for_the_backward_pass(num_layers: int) -> None:
    wide = 64
    shape = shape_of(
        hidden_size=wide,
        target_hidden_size=wide,
        intermediate_size=192,
        head_dim=16,
        num_layers=num_layers,
        max_position_embeddings=2048,
    )
    embedding_VH = torch.randn(V, wide)
    sample = random_sample([0] + [1] * 800, embedding(1), 0)
    aux_TLH = np.random.default_rng(0).integers(0, 2**14, (801, 3, wide), dtype=np.uint16)
    sample = replace(sample, states=replace(sample.states, aux_TLH=aux_TLH))
    rng = np.random.default_rng(0)
    settings = PeagleSettings(anchors=2000)

    def choose(_number: int, rows_KN: Rows, _own: Rows) -> Rows:
        return thinned(settings, rows_KN, rng)

    batch = make_batch([sample], 8, choose=choose)
    with bytes_saved() as kept:
        Peagle(shape, embedding_VH)(batch)
    planned = ARCHITECTURE.activation_numbers(shape, 801, 8)
    assert kept[0] / 4 == pytest.approx(planned, rel=0.03)
