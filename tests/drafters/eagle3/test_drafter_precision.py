"""Lower precision and other devices against float32 on the CPU."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.drafters.parts.attention.rotary import Rotary
from specpipe.stages.drafters.parts.norm import RMSNorm
from specpipe.stages.samples.batch import make_batch
from tests.drafters.toys import (
    DRAFT_IDS,
    H,
    V,
    random_drafter,
    random_samples,
    shape_of,
    verifier_of,
)

LM_HEAD_VH = torch.randn(V, H, generator=torch.Generator().manual_seed(41)) * 0.7
MASKS = [[0] * 20 + [1] * 60, [0] * 5 + [1] * 20 + [0] * 10 + [1] * 30, [1, 1, 1]]


SHAPES: list[dict[str, object]] = [
    {},
    {"layer_type": "qwen3", "num_layers": 2, "norm_before_residual": True},
    {"sliding_window": 20, "fc_norm": True, "norm_output": True},
]


def train_pass(
    device: str, autocast: bool, changes: dict[str, object], *, embedding_on_cpu: bool = False
) -> tuple[Tensor, float, list[Tensor]]:
    """Hidden states where they are used, the loss, and every gradient; on the CPU."""
    # CUDA's flash kernel wants heads of a multiple of eight.
    shape = shape_of(len(DRAFT_IDS), head_dim=16, **changes)
    model = random_drafter(shape, 6, embedding_on_cpu=embedding_on_cpu).to(device)
    batch = make_batch(random_samples(MASKS, LM_HEAD_VH), 3).to(torch.device(device))
    verifier = verifier_of(LM_HEAD_VH, DRAFT_IDS)
    verifier = type(verifier)(
        logits=lambda final_RH: final_RH.float() @ LM_HEAD_VH[DRAFT_IDS].T.to(device),
        draft_ids_V=verifier.draft_ids_V.to(device),
        target_ids_D=verifier.target_ids_D.to(device),
    )
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        hidden = model(batch).float()
    loss_settings = LossSettings(
        {"lk_hybrid": 1.0}, torch.ones(3, device=device), torch.full((3,), 0.4, device=device)
    )
    loss, _ = HeadLoss(verifier, 16)(
        hidden, Heads.shared(model.lm_head.weight), batch, loss_settings
    )
    grads = torch.autograd.grad(loss, list(model.parameters()))
    used_KN = batch.rows_KN >= 0
    return hidden[used_KN].detach().cpu(), float(loss.detach()), [g.cpu() for g in grads]


def similarity(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    flat_one, flat_other = (torch.cat([g.flatten() for g in gs]) for gs in (one, other))
    return float(torch.nn.functional.cosine_similarity(flat_one, flat_other, dim=0))


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_bfloat16_autocast_stays_near_float32(changes: dict[str, object]) -> None:
    hidden, loss, grads = train_pass("cpu", False, changes)
    low_hidden, low_loss, low_grads = train_pass("cpu", True, changes)
    assert all(g.dtype == torch.float32 for g in low_grads)
    assert (low_hidden - hidden).norm() / hidden.norm() < 0.02
    assert not torch.equal(low_hidden, hidden)
    assert low_loss == pytest.approx(loss, rel=0.01)
    assert similarity(low_grads, grads) > 0.995


def test_norms_and_angles_are_exact_under_autocast() -> None:
    """bfloat16 would keep 8 bits of an angle: at position 5,000 nothing of the fast planes."""
    torch.manual_seed(0)
    norm, shape = RMSNorm(64, 1e-5), shape_of()
    x = (3 * torch.randn(50, 64)).bfloat16()
    with torch.no_grad():
        norm.weight.normal_()
    positions = torch.tensor([0, 1, 255, 256, 257, 5000])
    plain = Rotary(shape)(positions, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        low = Rotary(shape)(positions, torch.float32)
        normed = norm(x)
    assert normed.dtype == torch.float32
    exact = x.double() / torch.sqrt(x.double().square().mean(-1, keepdim=True) + 1e-5)
    exact = exact * norm.weight.double()
    torch.testing.assert_close(normed.double(), exact, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(plain, low, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("embedding_on_cpu", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_cuda_equals_the_cpu(
    autocast: bool, embedding_on_cpu: bool, changes: dict[str, object]
) -> None:
    hidden, loss, grads = train_pass("cpu", False, changes)
    cuda_hidden, cuda_loss, cuda_grads = train_pass(
        "cuda", autocast, changes, embedding_on_cpu=embedding_on_cpu
    )
    tolerance = 0.02 if autocast else 1e-3
    assert (cuda_hidden - hidden).norm() / hidden.norm() < tolerance
    assert cuda_loss == pytest.approx(loss, rel=tolerance)
    assert similarity(cuda_grads, grads) > 1 - tolerance
