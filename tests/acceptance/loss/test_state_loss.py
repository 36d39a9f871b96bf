"""The loss of states beside the obvious loop in float64, and in parts."""

import pytest
import torch
from torch import Tensor, nn

from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.state_loss import StateLoss
from specpipe.stages.samples.batch import Batch
from tests.acceptance.loss.loss_rows import rows_batch

H = 5
WEIGHTS_K = torch.tensor([1.0, 0.7], dtype=torch.float64)
ROWS_KN = [[0, 1, 2, 3], [1, 2, -1, -1]]
"""Of two heads at four starts; the second uses two of them."""
WEIGHTS_N = [1.0, 2.0, 0.5, 1.0]


def random(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def final_norm() -> nn.Module:
    norm = nn.RMSNorm(H, eps=1e-6, dtype=torch.float64).requires_grad_(False)
    norm.weight.copy_(random(H, seed=1))
    return norm


def batch_of(starts: slice = slice(None)) -> Batch:
    states_SH = random(4, H, seed=2)
    rows = [row[starts] for row in ROWS_KN]
    return rows_batch(states_SH, [0, 1, 2, 3], rows, WEIGHTS_N[starts])


def counted(batch: Batch) -> Denominators:
    return Denominators.of(batch, torch.arange(H))


def naive(outputs_KNX: Tensor, batch: Batch) -> Tensor:
    assert batch.final_SH is not None
    total = outputs_KNX.new_zeros(())
    for k, rows_N in enumerate(batch.rows_KN.tolist()):
        used = [n for n, row in enumerate(rows_N) if row >= 0]
        weights = [float(batch.weights_N[n]) for n in used]
        for n, weight in zip(used, weights, strict=True):
            state_H = final_norm()(batch.final_SH[rows_N[n]])
            apart = (outputs_KNX[k, n, :H] - state_H).norm() ** 2 / state_H.norm() ** 2
            total = total + 3 * WEIGHTS_K[k] * weight * apart / sum(weights)
    return total


@pytest.mark.parametrize("width", [H, H + 2])
def test_it_is_the_obvious_loop(width: int) -> None:
    """Columns beyond the target's width, as DSpark's outputs have them, do not count."""
    batch, outputs = batch_of(), random(2, 4, width, seed=3).requires_grad_()
    loss = StateLoss(3.0, final_norm())(outputs, batch, WEIGHTS_K, counted(batch))
    expected = naive(outputs, batch)
    torch.testing.assert_close(loss, expected)
    [gradient], [wanted] = (torch.autograd.grad(2 * one, outputs) for one in (loss, expected))
    torch.testing.assert_close(gradient, wanted)
    assert wanted[1, 2:].count_nonzero() == wanted[..., H:].count_nonzero() == 0


def test_parts_add_up_to_the_whole() -> None:
    whole, outputs = batch_of(), random(2, 4, H, seed=4)
    of, state_loss = counted(whole), StateLoss(3.0, final_norm())
    halves = [slice(0, 2), slice(2, 4)]
    parts = [state_loss(outputs[:, half], batch_of(half), WEIGHTS_K, of) for half in halves]
    torch.testing.assert_close(sum(parts), state_loss(outputs, whole, WEIGHTS_K, of))


def test_outputs_that_are_the_states_cost_nothing() -> None:
    batch = batch_of()
    assert batch.final_SH is not None
    outputs = final_norm()(batch.final_SH)[batch.rows_KN]
    assert StateLoss(3.0, final_norm())(outputs, batch, WEIGHTS_K, counted(batch)) == 0
