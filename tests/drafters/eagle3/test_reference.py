"""The drafter and its loss against the dense float64 reference: outputs, loss, every gradient."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specpipe.schemas.settings.train import LossName
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.settings import LossSettings, hybrid_lambda
from specpipe.stages.drafters.parts.attention.rotary import Rotary
from specpipe.stages.samples.batch import make_batch
from tests.acceptance import reference
from tests.acceptance.loss.loss_rows import mean_alpha
from tests.drafters.toys import (
    DRAFT_IDS,
    ExactRotary,
    H,
    L,
    V,
    bytes_saved,
    double_batch,
    random_drafter,
    random_samples,
    shape_of,
    verifier_of,
)

DECAY, ETA = 0.8, 3.0
LOSSES: tuple[LossName, ...] = get_args(LossName)
SWITCHES = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
LM_HEAD_VH = torch.randn(V, H, generator=torch.Generator().manual_seed(99)) * 0.7

# Spans of 1 and 2 tokens, at token 0, at the end, one token apart; no span; tiny samples.
MASKS = [
    [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1],
    [0, 0, 0, 0],
    [1, 1, 1],
    [0, 1],
    [1],
    [0, 0, 1],
    [0, 1, 1, 1, 1, 0, 0, 0],
]


def check(
    masks: Sequence[Sequence[int]],
    num_heads: int,
    losses: Sequence[LossName],
    *,
    target_ids: Sequence[int] = DRAFT_IDS,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-9,
    seed: int = 0,
    switches: Mapping[str, object] = MappingProxyType({}),
) -> None:
    shape = shape_of(len(target_ids), **switches)
    model = random_drafter(shape, seed).to(dtype)
    if dtype == torch.float64:
        model.rotary = ExactRotary(shape)  # type: ignore[assignment]
    samples = random_samples(masks, LM_HEAD_VH, seed)
    batch = double_batch(samples, num_heads)
    parameters = dict(model.named_parameters())
    want = reference.expect(
        parameters, shape, model.embedding.table, samples, LM_HEAD_VH, target_ids, num_heads
    )

    hidden_KNH = model(batch)
    starts = [
        (number, start)
        for number, sample in enumerate(samples)
        for start in range(len(sample.input_ids))
        if reference.is_valid(sample.loss_mask.tolist(), start, 1)
    ]
    assert hidden_KNH.shape == (num_heads, len(starts), shape.hidden_size)
    used = {(row.sample, row.start, row.head) for row in want.rows}
    for n, (number, start) in enumerate(starts):
        for k in range(num_heads):
            if (number, start, k + 1) in used:
                torch.testing.assert_close(
                    hidden_KNH[k, n].double(), want.hidden[number][k, start], rtol=0, atol=tolerance
                )

    verifier = verifier_of(LM_HEAD_VH.to(dtype), target_ids)
    for loss in losses:
        head_weights_K = DECAY ** torch.arange(num_heads, dtype=dtype)
        measures = HeadLoss(verifier, 5).measures(
            hidden_KNH, Heads.shared(model.lm_head.weight), batch
        )
        lambda_K = hybrid_lambda(mean_alpha(measures, batch), ETA)
        value, _ = HeadLoss(verifier, 5)(
            hidden_KNH,
            Heads.shared(model.lm_head.weight),
            batch,
            LossSettings({loss: 1.0}, head_weights_K, lambda_K),
        )
        reference_value = reference.reference_loss(want.rows, num_heads, loss, DECAY, ETA)
        torch.testing.assert_close(value.double(), reference_value, rtol=tolerance, atol=tolerance)
        got = torch.autograd.grad(
            value, list(parameters.values()), retain_graph=True, materialize_grads=True
        )
        # Without a row that counts (none at all, or for `ce` none inside D) there is no gradient.
        exact = [torch.zeros_like(weight) for weight in want.weights.values()]
        if reference_value.requires_grad:
            exact = list(
                torch.autograd.grad(
                    reference_value,
                    list(want.weights.values()),
                    retain_graph=True,
                    materialize_grads=True,
                    allow_unused=True,
                )
            )
        for name, one, other in zip(parameters, got, exact, strict=True):
            error = (one.double() - other).abs().max()
            assert error <= tolerance * max(1.0, float(other.abs().max())), (loss, name, error)


@pytest.mark.parametrize("num_heads", [1, 2, 3, 5, 7])
def test_every_loss_and_every_gradient_in_float64(num_heads: int) -> None:
    check(MASKS, num_heads, LOSSES)


@pytest.mark.parametrize("on", list(itertools.product([False, True], repeat=4)))
def test_every_switch(on: tuple[bool, ...]) -> None:
    check(MASKS[:4], 3, ["lk_hybrid"], switches=dict(zip(SWITCHES, on, strict=True)))


SHAPES: list[dict[str, object]] = [
    {"num_layers": 2},
    {"num_layers": 3, "norm_before_residual": True, "norm_output": True},
    {"layer_type": "qwen3"},
    {"layer_type": "qwen3", "num_layers": 2, "sliding_window": 5},
    {"sliding_window": 4},
    {"sliding_window": 9, "num_layers": 2, "fc_norm": True},
    {"hidden_size": 10},
    {"hidden_size": 18, "num_layers": 2, "norm_before_fc": True},
    {"hidden_size": 10, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 6},
    {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 2},
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_every_shape(changes: dict[str, object]) -> None:
    check(MASKS, 4, ["lk_hybrid"], switches=changes)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_every_shape_in_float32_with_the_flash_kernel(changes: dict[str, object]) -> None:
    masks = [*MASKS, [0] * 9 + [1] * 30 + [0] * 3 + [1] * 40]
    check(masks, 4, ["kl"], dtype=torch.float32, tolerance=3e-5, switches=changes)


def test_the_whole_vocabulary_as_draft_vocabulary() -> None:
    check(MASKS, 3, LOSSES, target_ids=range(V))


@pytest.mark.parametrize("num_heads", [1, 4, 7])
def test_float32_with_the_flash_kernel(num_heads: int) -> None:
    masks = [*MASKS, [0] * 9 + [1] * 30 + [0] * 3 + [1] * 40]
    check(masks, num_heads, LOSSES, dtype=torch.float32, tolerance=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    masks=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=3),
    num_heads=st.integers(1, 7),
    loss=st.sampled_from(LOSSES),
    on=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 100),
)
def test_any_masks(
    masks: list[list[int]], num_heads: int, loss: LossName, on: tuple[bool, ...], seed: int
) -> None:
    check(masks, num_heads, [loss], seed=seed, switches=dict(zip(SWITCHES, on, strict=True)))


def test_no_start_no_loss_and_no_gradient() -> None:
    model = random_drafter(shape_of(len(DRAFT_IDS)), 0)
    batch = make_batch(random_samples([[0, 0, 0], [1], [0, 1]], LM_HEAD_VH), 3)
    hidden_KNH = model(batch)
    assert hidden_KNH.shape == (3, 0, H)
    settings_ = LossSettings({"kl": 1.0}, torch.ones(3))
    value, measures = HeadLoss(verifier_of(LM_HEAD_VH, DRAFT_IDS), 4)(
        hidden_KNH, Heads.shared(model.lm_head.weight), batch, settings_
    )
    value.backward()
    assert value == 0
    assert measures.shape[1:] == (3, 0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_what_no_valid_row_depends_on_has_exactly_zero_gradient() -> None:
    """Positions after a sample's last start, whole samples without a row, and unused heads."""
    model = random_drafter(shape_of(len(DRAFT_IDS)), 3)
    samples = random_samples(MASKS, LM_HEAD_VH)
    batch = make_batch(samples, 4)
    aux_TLH = batch.aux_TLH.float().requires_grad_()
    hidden_KNH = model(replace(batch, aux_TLH=aux_TLH))
    hidden_KNH.retain_grad()
    value, measures_MKN = HeadLoss(verifier_of(LM_HEAD_VH, DRAFT_IDS), 64)(
        hidden_KNH,
        Heads.shared(model.lm_head.weight),
        batch,
        LossSettings({"kl": 1.0}, torch.ones(4)),
    )
    value.backward()
    assert hidden_KNH.grad is not None
    assert aux_TLH.grad is not None
    unused_KN = batch.rows_KN < 0
    assert unused_KN.any()
    assert not hidden_KNH.grad[unused_KN].any()
    assert not measures_MKN[:, unused_KN].any()
    assert hidden_KNH.grad[~unused_KN].abs().sum(-1).all()
    at = 0
    for sample in samples:
        mask = sample.loss_mask.tolist()
        starts = [i for i in range(len(mask)) if reference.is_valid(mask, i, 1)]
        last = max(starts, default=-1)
        grads_TLH = aux_TLH.grad[at : at + len(mask)]
        assert not grads_TLH[last + 1 :].any()
        # Step-1 keys at and before the last start are all seen by it.
        assert grads_TLH[: last + 1].flatten(1).abs().sum(-1).all()
        at += len(mask)


def test_samples_do_not_see_each_other() -> None:
    """A sample's outputs are the same alone and packed, wherever it stands in the pack."""
    model = random_drafter(shape_of(), 1).double()
    samples = random_samples(MASKS, LM_HEAD_VH)
    alone = [model(make_batch([sample], 5)) for sample in samples]
    for order in (range(len(samples)), range(len(samples) - 1, -1, -1)):
        batch = make_batch([samples[n] for n in order], 5)
        packed = model(batch)
        apart = torch.cat([alone[n] for n in order], dim=1)
        used_KN = batch.rows_KN >= 0
        torch.testing.assert_close(packed[used_KN], apart[used_KN], rtol=0, atol=1e-12)


def test_later_tokens_do_not_reach_earlier_heads() -> None:
    """Head k at start i takes x[i+1] .. x[i+k] and features up to i: nothing later changes it."""
    model = random_drafter(shape_of(), 2).double()
    [sample] = random_samples([[0] + [1] * 11], LM_HEAD_VH)
    batch = make_batch([sample], 3)
    before = model(batch)
    for j in range(len(sample.input_ids)):
        ids_T = batch.input_ids_T.clone()
        ids_T[j:] = (ids_T[j:] + 1) % V
        aux_TLH = batch.aux_TLH.clone()
        aux_TLH[j:] += 1
        after_ids = model(replace(batch, input_ids_T=ids_T))
        after_aux = model(replace(batch, aux_TLH=aux_TLH))
        for n, start in enumerate(batch.starts_N.tolist()):
            for k in range(1, 4):
                if batch.rows_KN[k - 1, n] >= 0:
                    same_ids = torch.equal(after_ids[k - 1, n], before[k - 1, n])
                    same_aux = torch.equal(after_aux[k - 1, n], before[k - 1, n])
                    assert same_ids == (start + k < j)
                    assert same_aux == (start < j)


def test_saved_memory_is_linear_in_tokens() -> None:
    def saved(num_tokens: int) -> int:
        batch = make_batch(random_samples([[0] * 8 + [1] * (num_tokens - 8)], LM_HEAD_VH), 3)
        model = random_drafter(shape_of(), 0)
        with bytes_saved() as total:
            model(batch)
        return total[0]

    small, large = saved(512), saved(1024)
    assert large < 2.1 * small


@pytest.mark.parametrize(
    ("rope", "max_positions"),
    [
        ({"rope_type": "default", "rope_theta": 10000.0}, 2048),
        ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 2048),
        (
            {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
            2048,
        ),
    ],
)
def test_rope_tables_are_the_targets(rope: dict[str, object], max_positions: int) -> None:
    shape = shape_of().model_copy(
        update={"rope_parameters": rope, "head_dim": 16, "max_position_embeddings": max_positions}
    )
    rotary = Rotary(shape)
    positions = torch.tensor([0, 1, 2, 77, 1500])
    cos, sin = rotary(positions, torch.float32)
    assert cos.shape == sin.shape == (5, 1, 16)
    config = LlamaConfig(head_dim=16, max_position_embeddings=max_positions, rope_parameters=rope)
    want = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    torch.testing.assert_close((cos[:, 0], sin[:, 0]), (want[0][0], want[1][0]), rtol=0, atol=0)
    if rope["rope_type"] == "default":
        exact = ExactRotary(shape)
        exact.theta = rope["rope_theta"]
        torch.testing.assert_close((cos, sin), exact(positions, torch.float32), rtol=0, atol=2e-4)


def test_parameter_names_and_shapes_are_the_artifacts() -> None:
    model = random_drafter(shape_of(len(DRAFT_IDS), norm_before_fc=True, fc_norm=True), 0)
    queries, keys = 4 * 4, 2 * 4
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == {
        "fc.weight": (H, L * H),
        "input_norm.weight": (L * H,),
        **{f"fc_norm.{n}.weight": (H,) for n in range(L)},
        "layers.0.input_layernorm.weight": (H,),
        "layers.0.hidden_norm.weight": (H,),
        "layers.0.post_attention_layernorm.weight": (H,),
        "layers.0.self_attn.q_proj.weight": (queries, 2 * H),
        "layers.0.self_attn.k_proj.weight": (keys, 2 * H),
        "layers.0.self_attn.v_proj.weight": (keys, 2 * H),
        "layers.0.self_attn.o_proj.weight": (H, queries),
        "layers.0.mlp.gate_proj.weight": (10, H),
        "layers.0.mlp.up_proj.weight": (10, H),
        "layers.0.mlp.down_proj.weight": (H, 10),
        "norm.weight": (H,),
        "lm_head.weight": (len(DRAFT_IDS), H),
    }
