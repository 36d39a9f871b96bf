"""DFlash in training against the plain one: two implementations, one mathematics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specpipe.schemas.drafters.dflash import DFlashShape
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.dflash.architecture import ARCHITECTURE
from specpipe.stages.drafters.parts.block import model as model_file
from specpipe.stages.drafters.parts.block.model import BlockDrafter
from specpipe.stages.samples.batch import Batch, make_batch
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


def make_shape(**changes: Any) -> DFlashShape:
    return DFlashShape(**SHAPE).model_copy(update=changes)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"draft_vocab_size": D},
    {"draft_vocab_size": D, "own_lm_head": True},
    {"own_lm_head": True, "num_layers": 1},
    {"sliding_window": 6},
    {"sliding_window": 6, "causal": True, "num_layers": 3},
    {"aux_layers": (1, 2, 3, 4, 5), "num_key_value_heads": 4},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_plain_drafter_equals_the_trained_one(changes: dict[str, Any], tmp_path: Path) -> None:
    """In float64, for every format, from files."""
    shape = make_shape(**changes)
    generator = torch.Generator().manual_seed(0)
    target, weights = target_of(generator), weights_of(ARCHITECTURE, shape, generator)
    size = shape.draft_vocab_size
    ids_D = torch.randperm(V, generator=generator)[:size].sort().values
    vocab = {"d2t": ids_D - torch.arange(size), "t2d": torch.isin(torch.arange(V), ids_D)}
    tensors = ARCHITECTURE.artifact_tensors(shape, weights, vocab, target)
    assert ("lm_head.weight" in tensors) == (size < V or shape.own_lm_head)
    assert "embed_tokens.weight" not in tensors
    sample = sample_of(shape, generator)
    batch = make_batch([sample], K)
    model = model_of(ARCHITECTURE, shape, weights, target, ids_D).double()
    model.rotary = ExactRotary(shape)  # type: ignore[assignment]
    with torch.no_grad():
        hidden_KNH = model(batch)
        head_DH = model.heads().of(0)[0]
    used_KN = batch.rows_KN >= 0
    first, last = int(batch.starts_N[0]), int(batch.starts_N[-1]) + 1
    aux_TLH = torch.from_numpy(sample.states.aux_TLH).view(torch.bfloat16)
    for format in ARCHITECTURE.formats.values():
        folder = tmp_path / format.name
        folder.mkdir()
        format.write(folder, format.config(Drafter(shape, "target", "X", K)), tensors)
        plain = ARCHITECTURE.proposal(folder, target).double()
        assert torch.equal(plain.target_ids_D, ids_D)
        assert plain.aux_layers == shape.aux_layers
        ids_T = torch.from_numpy(sample.input_ids)
        outputs = plain.hidden(ids_T, aux_TLH, first, last, K)
        for k in range(K):
            ours = hidden_KNH[k, used_KN[k]] @ head_DH.double().T
            theirs = plain.logits(outputs[k, used_KN[k]], k + 1)
            # transformers' angles are float32 in the plain one.
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_the_number_of_slots_counts_where_a_block_is_not_causal() -> None:
    """T7: a drafter of 4 tokens drafts its first otherwise than one of 2."""
    for causal in (False, True):
        shape = make_shape(causal=causal)
        generator = torch.Generator().manual_seed(1)
        model = model_of(
            ARCHITECTURE,
            shape,
            weights_of(ARCHITECTURE, shape, generator),
            target_of(generator),
            torch.arange(V),
        )
        batch = make_batch([sample_of(shape, generator)], K)
        with torch.no_grad():
            many, few = model(batch)[:2], model(batch.with_heads(2))
        assert torch.allclose(many, few, atol=1e-5) is causal
        assert ARCHITECTURE.depends_on_num_heads(shape) is not causal


def test_starts_in_parts_are_computed_as_together(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = make_shape(sliding_window=6)
    generator = torch.Generator().manual_seed(2)
    model = model_of(
        ARCHITECTURE,
        shape,
        weights_of(ARCHITECTURE, shape, generator),
        target_of(generator),
        torch.arange(V),
    )
    batch = make_batch([sample_of(shape, generator) for _ in range(3)], K)
    together = model(batch)
    monkeypatch.setattr(model_file, "ROWS", 3 * (K + 1))
    with torch.no_grad():
        torch.testing.assert_close(model(batch), together, rtol=1e-4, atol=1e-5)


def _sum(model: BlockDrafter, batch: Batch, weights_KNH: Tensor) -> Tensor:
    out: Tensor = (model(batch) * weights_KNH).sum()
    return out


@pytest.mark.parametrize(
    "changes", [{}, {"causal": True, "sliding_window": 6}, {"recompute": True}], ids=str
)
def test_gradients_are_those_of_finite_differences(changes: dict[str, Any]) -> None:
    """Of every parameter, the projections of the context among them, in float64."""
    runtime = Runtime(recompute=changes.pop("recompute", False))
    shape = make_shape(**changes)
    generator = torch.Generator().manual_seed(3)
    target = target_of(generator)
    model = ARCHITECTURE.build(shape, target, torch.arange(V), runtime).double()
    model.rotary = ExactRotary(shape)  # type: ignore[assignment]
    model.load_state_dict(weights_of(ARCHITECTURE, shape, generator))
    batch = make_batch([sample_of(shape, generator)], K)
    weights_KNH = torch.randn(K, len(batch.starts_N), H, generator=generator, dtype=torch.float64)
    assert_slopes(lambda: _sum(model, batch, weights_KNH), model, 1e-5)


def test_no_gradient_is_made_of_what_is_the_targets() -> None:
    shape = make_shape()
    generator = torch.Generator().manual_seed(4)
    model = model_of(
        ARCHITECTURE,
        shape,
        weights_of(ARCHITECTURE, shape, generator),
        target_of(generator),
        torch.arange(V),
    )
    (head,) = model.heads().blocks
    assert not head.requires_grad
    assert not {"lm_head.weight", "embed_tokens.weight", "head_DH"} & set(model.state_dict())


def test_a_step_takes_some_anchors_of_each_sample() -> None:
    config = TrainConfig(dump="d", out="o", drafter="dflash", anchors=3)  # type: ignore[call-arg]
    rows_KN = np.ones((K, 20), np.bool_)
    rows_KN[:, :4] = False
    rows_KN[2:, 15:] = False
    chosen = ARCHITECTURE.choose_rows(config, rows_KN, np.random.default_rng(5))
    again = ARCHITECTURE.choose_rows(config, rows_KN, np.random.default_rng(5))
    assert np.array_equal(chosen, again)
    kept_N = np.asarray(chosen.any(axis=0))
    assert kept_N.sum() == 3
    assert not kept_N[:4].any()
    # A block that is cut by the span's end keeps the heads that it has.
    assert np.array_equal(chosen[:, kept_N], rows_KN[:, kept_N])
    every = ARCHITECTURE.choose_rows(config, rows_KN[:, :6], np.random.default_rng(5))
    assert np.array_equal(every, rows_KN[:, :6])


@pytest.mark.parametrize(
    ("num_layers", "layers"),
    [
        (36, (2, 10, 18, 26, 34)),
        (28, (2, 8, 14, 20, 26)),
        (8, (2, 3, 4, 5, 6)),
        (6, (1, 2, 3, 4, 5)),
        (4, (1, 2, 3)),
        (2, (1,)),
    ],
)
def test_default_layers(num_layers: int, layers: tuple[int, ...]) -> None:
    assert ARCHITECTURE.settings.default_layers(num_layers) == layers
