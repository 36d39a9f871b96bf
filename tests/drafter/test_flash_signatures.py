"""The CUDA kernels take our arguments: their shape functions run on the meta device, without one.

Their values are held by the tests marked `gpu`.
"""

import pytest
import torch

from specpipe.stages.drafter.flash import flash_backward, flash_forward


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_queries", [1, 10, 64])
def test_kernels_accept_the_call(dtype: torch.dtype, num_queries: int) -> None:
    q_qhE = torch.empty(num_queries, 4, 32, dtype=dtype, device="meta")
    k_kgE = torch.empty(num_queries, 2, 32, dtype=dtype, device="meta")
    out, lse = flash_forward(q_qhE, k_kgE, k_kgE, True, 0.1)
    assert (out.shape, lse.shape, lse.dtype) == (q_qhE.shape, (num_queries, 4), torch.float32)
    gradients = flash_backward(q_qhE, q_qhE, k_kgE, k_kgE, out, lse, True, 0.1)
    assert [g.shape for g in gradients] == [q_qhE.shape, k_kgE.shape, k_kgE.shape]
