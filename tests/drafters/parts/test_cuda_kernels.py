"""The CUDA kernels take our arguments: their shape functions run on the meta device, without one.

Their values are held by the tests marked `gpu`; what is laid out for the kernel of sequences of
various lengths is held here, with a plain stand-in for that kernel.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from specpipe.stages.drafters.parts.attention import flash_varlen
from specpipe.stages.drafters.parts.attention.flash_blocks import FlashBlocks
from specpipe.stages.drafters.parts.attention.flash_varlen import FlashVarlen
from specpipe.stages.drafters.parts.attention.kernel import AttentionKernel
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.reference import ReferenceAttention
from specpipe.stages.samples.batch import SpanOfStarts

SPANS = (SpanOfStarts(0, 0, 1), SpanOfStarts(0, 3, 7), SpanOfStarts(9, 12, 40))
NUM_STARTS, NUM_POSITIONS = 33, 42


@pytest.mark.parametrize(
    ("kernel", "dtype"), [(FlashBlocks(), torch.float32), (FlashVarlen(), torch.bfloat16)]
)
@pytest.mark.parametrize("window", [None, 5])
def test_kernels_accept_the_call(
    kernel: AttentionKernel, dtype: torch.dtype, window: int | None
) -> None:
    q_NhE = torch.empty(NUM_STARTS, 4, 32, dtype=dtype, device="meta")
    k_TgE = torch.empty(NUM_POSITIONS, 2, 32, dtype=dtype, device="meta")
    layout = Layout.of_starts(SPANS)
    out, lse = kernel.forward(q_NhE, k_TgE, k_TgE, layout, window)
    assert (out.shape, lse.shape) == (q_NhE.shape, (NUM_STARTS, 4))
    assert (out.dtype, lse.dtype) == (torch.float32, torch.float32)
    gradients = kernel.backward(q_NhE, q_NhE, k_TgE, k_TgE, out, lse, layout, window)
    assert [g.shape for g in gradients] == [q_NhE.shape, k_TgE.shape, k_TgE.shape]


class PlainVarlen:
    """The kernel's contract: sequences of queries and of keys, aligned at their ends."""

    def _flash_attention_forward(
        self, q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, *rest: Any,
        window_size_left: int, **_: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert rest[:2] == (int(ends_q.diff().max()), int(ends_k.diff().max()))
        out, lse = ReferenceAttention().forward(
            q, k, v, _as_layout(ends_q, ends_k), _window(window_size_left)
        )
        return out, lse.T

    def _flash_attention_backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        ends_q: Tensor, ends_k: Tensor, *_: Any, window_size_left: int, **__: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        layout = _as_layout(ends_q, ends_k)
        return ReferenceAttention().backward(
            dout, q, k, v, out, lse.T, layout, _window(window_size_left)
        )


def _window(left: int) -> int | None:
    return None if left == -1 else left + 1


def _as_layout(ends_q: Tensor, ends_k: Tensor) -> Layout:
    spans = []
    for end_q, num_q, end_k, first_k in zip(
        ends_q[1:].tolist(), ends_q.diff().tolist(), ends_k[1:].tolist(), ends_k[:-1].tolist(),
        strict=True,
    ):  # fmt: skip
        assert end_k - num_q >= first_k
        spans.append(SpanOfStarts(first_k, end_k - num_q, end_k))
        assert sum(s.num_starts for s in spans) == end_q
    return Layout.of_starts(spans)


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("everywhere", [False, True])
def test_runs_hold_each_samples_queries_and_keys(
    window: int | None, everywhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash_varlen, "_ops", PlainVarlen())
    layout = Layout.of_positions(SPANS) if everywhere else Layout.of_starts(SPANS)
    generator = torch.Generator().manual_seed(1)
    rows = NUM_POSITIONS if everywhere else NUM_STARTS
    q, k, v, dout = (
        torch.randn(count, heads, 8, generator=generator)
        for count, heads in ((rows, 4), (NUM_POSITIONS, 2), (NUM_POSITIONS, 2), (rows, 4))
    )
    want_out, want_lse = ReferenceAttention().forward(q, k, v, layout, window)
    out, lse = FlashVarlen().forward(q, k, v, layout, window)
    torch.testing.assert_close((out, lse), (want_out, want_lse))
    # As a part of a larger softmax.
    arguments = dout, q, k, v, out, lse + 0.3, layout, window
    want = ReferenceAttention().backward(*arguments)
    torch.testing.assert_close(FlashVarlen().backward(*arguments), want)
