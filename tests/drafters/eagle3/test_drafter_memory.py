"""Options that save memory: the same figures, and how much less is kept."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from specpipe.schemas.settings.train import AttentionName
from specpipe.stages.drafters.eagle3.model import Eagle3
from specpipe.stages.samples.batch import make_batch
from tests.drafters.toys import (
    H,
    V,
    bytes_at_once,
    double_batch,
    random_drafter,
    random_samples,
    shape_of,
)

LM_HEAD_VH = torch.randn(V, H, generator=torch.Generator().manual_seed(7))
MASKS = [[0] * 9 + [1] * 30, [1, 1, 1, 0, 1, 1, 1, 1], [0, 0], [0] + [1] * 20]
SHAPES: list[dict[str, object]] = [
    {},
    {"num_layers": 2, "layer_type": "qwen3", "norm_output": True},
    {"num_layers": 2, "sliding_window": 6, "norm_before_residual": True},
    {"hidden_size": 10, "fc_norm": True},
]


def gradients(model: Eagle3, num_heads: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    dtype = model.fc.weight.dtype
    make = make_batch if dtype == torch.float32 else double_batch
    hidden_KNH = model(make(random_samples(MASKS, LM_HEAD_VH), num_heads))
    generator = torch.Generator().manual_seed(0)
    upstream_KNH = torch.randn(hidden_KNH.shape, generator=generator).to(dtype)
    model.zero_grad()
    hidden_KNH.backward(upstream_KNH)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return hidden_KNH.detach(), grads


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_recomputing_gives_the_same_gradients_bit_for_bit(changes: dict[str, Any]) -> None:
    shape = shape_of(**changes)
    hidden, grads = gradients(random_drafter(shape, 2))
    again, recomputed = gradients(random_drafter(shape, 2, recompute=True))
    assert torch.equal(hidden, again)
    assert grads.keys() == recomputed.keys()
    assert len(grads) > 10
    for name, grad in grads.items():
        assert torch.equal(grad, recomputed[name]), name


def test_recomputing_keeps_less() -> None:
    """A wide enough drafter, so that what is kept is not lost in bookkeeping. At its peak backward
    holds six numbers per channel of a start's step: its state, key and value, their gradients, and
    a share of the one step that is being recomputed."""
    shape = shape_of().model_copy(
        update={"hidden_size": 64, "target_hidden_size": H, "intermediate_size": 256}
    )
    batch = make_batch(random_samples([[0] * 8 + [1] * 2000], LM_HEAD_VH), 7)
    peaks = []
    for recompute in (False, True):
        model = Eagle3(shape, torch.randn(V, H), recompute=recompute)
        with bytes_at_once() as peak:
            model(batch).sum().backward()
        peaks.append(peak[0])
    plain, recomputed = peaks
    per_channel = 4 * shape.hidden_size * 7 * 2000
    assert recomputed < 6 * per_channel < plain / 2, (plain, recomputed)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("attention", get_args(AttentionName))
def test_every_kernel_gives_the_drafter_the_same_gradients(
    attention: AttentionName, changes: dict[str, Any]
) -> None:
    shape = shape_of(**changes)
    _, want = gradients(random_drafter(shape, 3).double())
    _, got = gradients(random_drafter(shape, 3, attention=attention))
    for name, grad in want.items():
        scale = max(1.0, float(grad.abs().max()))
        torch.testing.assert_close(got[name].double() / scale, grad / scale, rtol=0, atol=2e-5)


def test_an_embedding_on_the_cpu_stays_there_and_gives_the_same_rows() -> None:
    shape = shape_of()
    held, moved = (random_drafter(shape, 4, embedding_on_cpu=on_cpu) for on_cpu in (True, False))
    batch = make_batch(random_samples(MASKS, LM_HEAD_VH), 3)
    assert torch.equal(held(batch), moved(batch))
    assert held.state_dict().keys() == moved.state_dict().keys()
    for model in (held, moved):
        model.to("meta")
    assert held.embedding.table.is_cpu
    assert moved.embedding.table.is_meta
    assert not any(buffer.numel() >= V * H for buffer in held.buffers())
