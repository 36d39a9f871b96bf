"""Heads as architectures have them: one for all, one each, in blocks, frozen, in half precision.

Legend: N starts, K heads, D draft vocabulary, V vocabulary, X width of the hidden states.
"""

import pytest
import torch
from torch import Tensor

from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.samples.batch import Batch
from tests.acceptance.loss.loss_rows import random_rows, rows_batch
from tests.drafters.toys import bytes_at_once

D, V, X, NUM_STARTS = 5, 6, 4, 7
WEIGHTS_K = torch.tensor([1.0, 0.6], dtype=torch.float64)
MIX = LossSettings({"kl": 0.5, "lk_alpha": 0.3, "ce": 0.2}, WEIGHTS_K)
VERIFIER = Verifier(
    lambda final_RV: final_RV[:, :D].clone(), torch.tensor([0, 1, 2, 3, 4, -1]), torch.arange(D)
)
HEAD_LOSS = HeadLoss(VERIFIER, 3)


def random(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def batch_of(dtype: torch.dtype = torch.float64) -> Batch:
    return random_rows(NUM_STARTS, V, seed=1, dtype=dtype)[2]


def naive(logits_KND: Tensor, batch: Batch) -> Tensor:
    """The loss of MIX by plain differentiable operators."""
    assert batch.final_SH is not None
    loss = torch.zeros((), dtype=torch.float64)
    for k in range(batch.num_heads):
        used = torch.nonzero(batch.rows_KN[k] >= 0).squeeze(1)
        rows = batch.rows_KN[k, used]
        p = torch.softmax(batch.final_SH[rows], -1)[:, :D]
        logq = torch.log_softmax(logits_KND[k, used], -1)
        pt = p / p.sum(-1, keepdim=True)
        kl = (pt * (pt.log() - logq)).sum(-1)
        lk = -torch.minimum(p, logq.exp()).sum(-1).log()
        token, weights = batch.next_token_S[rows], batch.weights_N[used]
        inside = token < D
        ce = -logq.gather(1, token.clamp(max=D - 1)[:, None])[:, 0]
        mean = ((0.5 * kl + 0.3 * lk) * weights).sum() / weights.sum()
        mean_ce = (ce * weights)[inside].sum() / weights[inside].sum()
        loss = loss + WEIGHTS_K[k] * (mean + 0.2 * mean_ce)
    return loss


def same_as_naive(heads: Heads, logits_KND: Tensor, hidden: Tensor, batch: Batch) -> None:
    """Value and gradients in the hidden states and every block that requires one."""
    inputs = [x for x in (hidden, *heads.blocks) if x.requires_grad]
    expected = naive(logits_KND, batch)
    loss, measures = HEAD_LOSS(hidden, heads, batch, MIX)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    of_naive, ours = (torch.autograd.grad(value, inputs) for value in (expected, loss))
    for one, other in zip(ours, of_naive, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    assert torch.equal(HEAD_LOSS.measures(hidden, heads, batch), measures)
    alpha = HEAD_LOSS.alpha_sums(hidden, heads, batch)
    weights_KN = (batch.rows_KN >= 0) * batch.weights_N
    torch.testing.assert_close(alpha, (measures[0] * weights_KN).sum(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("frozen", ["", "head", "second", "hidden"])
def test_blocks_side_by_side(frozen: str) -> None:
    """DSpark's: the target's lm_head and a low-rank term of the token before."""
    batch = batch_of()
    hidden = random(2, NUM_STARTS, X + 2, seed=2, grad=frozen != "hidden")
    head = random(D, X, seed=3, grad=frozen != "head")
    second = random(D, 2, seed=4, grad=frozen != "second")
    logits_KND = hidden @ torch.cat([head, second], 1).T
    same_as_naive(Heads.shared(head, second), logits_KND, hidden, batch)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_head_of_each_steps_own(frozen: bool) -> None:
    """Medusa's; the second one may stay as it is."""
    batch = batch_of()
    hidden = random(2, NUM_STARTS, X, seed=2)
    first, second = random(D, X, seed=3), random(D, X, seed=4, grad=not frozen)
    logits_KND = torch.stack([hidden[0] @ first.T, hidden[1] @ second.T])
    same_as_naive(Heads.per_head([first, second]), logits_KND, hidden, batch)


def test_a_block_that_heads_share_beside_one_of_their_own() -> None:
    batch = batch_of()
    hidden, shared = random(2, NUM_STARTS, X + 1, seed=2), random(D, X, seed=3)
    own = [random(D, 1, seed=4 + k) for k in range(2)]
    heads = Heads(tuple((shared, block) for block in own))
    assert len(heads.blocks) == 3
    logits_KND = torch.stack(
        [hidden[k] @ torch.cat([shared, block], 1).T for k, block in enumerate(own)]
    )
    same_as_naive(heads, logits_KND, hidden, batch)


def test_nothing_is_made_of_what_is_frozen() -> None:
    """Neither [D, X] nor [K, N, X]: only a gradient of the small block, and chunks."""
    size, width, starts = 3000, 200, 40
    batch = rows_batch(torch.randn(starts, 8), [0] * starts, [list(range(starts))] * 2)
    everything, project = torch.arange(size), torch.randn(8, size)
    head_loss = HeadLoss(Verifier(lambda final: final @ project, everything, everything), 4)
    head, second = torch.randn(size, width), torch.randn(size, 2, requires_grad=True)
    hidden = torch.randn(2, starts, width + 2)
    most = []
    for is_trained in (False, True):
        head.requires_grad_(is_trained)
        with bytes_at_once() as largest:
            heads = Heads.shared(head, second)
            head_loss(hidden, heads, batch, LossSettings({"kl": 1.0}, torch.ones(2)))[0].backward()
        most.append(largest[0])
    assert most[0] < 2 * size * width
    assert most[1] > 4 * size * width
    assert hidden.grad is None
    assert second.grad is not None


def test_nothing_is_kept_where_nothing_requires_grad() -> None:
    batch, hidden = batch_of(), random(2, NUM_STARTS, X, grad=False)
    loss, _ = HEAD_LOSS(hidden, Heads.shared(random(D, X, grad=False)), batch, MIX)
    assert not loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_frozen_head_as_the_target_stores_it(dtype: torch.dtype) -> None:
    """On a CPU: bit for bit what its copy in float32 gives."""
    batch = batch_of(torch.float32)
    hidden = random(2, NUM_STARTS, X + 2, seed=2).detach().float().requires_grad_()
    head = random(D, X, seed=3, grad=False).to(dtype)
    second = random(D, 2, seed=4).detach().float().requires_grad_()
    settings = LossSettings(MIX.losses, WEIGHTS_K.float())
    found = []
    for stored in (head, head.float()):
        loss, measures = HEAD_LOSS(hidden, Heads.shared(stored, second), batch, settings)
        gradients = torch.autograd.grad(loss, [hidden, second])
        found.append([loss, measures, *gradients])
        assert all(tensor.dtype == torch.float32 for tensor in found[-1])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
