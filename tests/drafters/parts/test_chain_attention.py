"""Attention over step-1 keys and chains against one dense softmax: kernels, gradients, memory.

Legend: T packed positions, N starts, C chain length, h query heads, g key/value heads, E head size.
"""

import math
from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import AttentionName
from specpipe.stages.drafters.parts.attention.chain import chain_attention
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.samples.batch import SpanOfStarts
from tests.drafters.toys import Largest, bytes_saved

# Two samples, at 0 and at 9; spans at a sample's beginning, of one start, and back to back.
SPANS = (
    SpanOfStarts(0, 0, 1),
    SpanOfStarts(0, 3, 7),
    SpanOfStarts(9, 9, 14),
    SpanOfStarts(9, 14, 15),
    SpanOfStarts(9, 17, 40),
)
NUM_POSITIONS = 41


def dense(
    q_NhE: Tensor,
    k_TgE: Tensor,
    v_TgE: Tensor,
    chain: Sequence[tuple[Tensor, Tensor]],
    spans: Sequence[SpanOfStarts],
    window: int | None = None,
) -> Tensor:
    """One softmax per start and head, in loops; the query stands `len(chain)` beyond its start."""
    starts = [(span.sample, at) for span in spans for at in range(span.begin, span.end)]
    rows = []
    for n, (sample, at) in enumerate(starts):
        first = sample if window is None else max(sample, at + len(chain) - window + 1)
        heads = []
        for head in range(q_NhE.shape[1]):
            kv = head // (q_NhE.shape[1] // k_TgE.shape[1])
            keys = torch.stack([*k_TgE[first : at + 1, kv], *[key[n, kv] for key, _ in chain]])
            values = torch.stack([*v_TgE[first : at + 1, kv], *[v[n, kv] for _, v in chain]])
            scores = keys @ q_NhE[n, head] / math.sqrt(q_NhE.shape[-1])
            heads.append(torch.softmax(scores, dim=0) @ values)
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def tensors(
    spans: Sequence[SpanOfStarts], num_positions: int, chain_length: int, heads: int, kv: int
) -> list[Tensor]:
    """q, k, v, then key and value of each chain step; float64 leaves."""
    generator = torch.Generator().manual_seed(17)
    num_starts = sum(span.num_starts for span in spans)
    shapes = [
        (num_starts, heads),
        *[(num_positions, kv)] * 2,
        *[(num_starts, kv)] * 2 * chain_length,
    ]
    return [torch.randn(*shape, 8, generator=generator, dtype=torch.float64) for shape in shapes]


def attend(
    leaves: Sequence[Tensor],
    spans: Sequence[SpanOfStarts],
    window: int | None = None,
    attention: AttentionName = "auto",
) -> Tensor:
    q, k, v, *chain = leaves
    pairs = list(zip(chain[::2], chain[1::2], strict=True))
    return chain_attention(q, (k, v), pairs, Layout.of_starts(spans), window, attention)


def attend_densely(
    leaves: Sequence[Tensor], spans: Sequence[SpanOfStarts], window: int | None
) -> Tensor:
    q, k, v, *chain = leaves
    return dense(q, k, v, list(zip(chain[::2], chain[1::2], strict=True)), spans, window)


def compare(
    spans: Sequence[SpanOfStarts],
    num_positions: int,
    chain_length: int,
    heads: int = 4,
    kv: int = 2,
    dtype: torch.dtype = torch.float32,
    value_tolerance: float = 2e-6,
    gradient_tolerance: float = 1e-5,
    window: int | None = None,
    attention: AttentionName = "auto",
) -> None:
    exact = tensors(spans, num_positions, chain_length, heads, kv)
    # Both sides start from the same, already rounded, numbers.
    exact = [leaf.to(dtype).double().requires_grad_() for leaf in exact]
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in exact]
    out = attend(leaves, spans, window, attention)
    want = attend_densely(exact, spans, window)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), want, rtol=0, atol=value_tolerance)
    upstream = torch.randn_like(want).to(dtype)
    got = torch.autograd.grad(out, leaves, upstream)
    expected = torch.autograd.grad(want, exact, upstream.double())
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=0, atol=gradient_tolerance)


@pytest.mark.parametrize("chain_length", [0, 1, 3, 6])
@pytest.mark.parametrize(("heads", "kv"), [(1, 1), (4, 4), (4, 2), (6, 1)])
def test_flash_kernel_and_merge_equal_a_dense_softmax(
    chain_length: int, heads: int, kv: int
) -> None:
    compare(SPANS, NUM_POSITIONS, chain_length, heads, kv)


@pytest.mark.parametrize("chain_length", [0, 2])
def test_float64(chain_length: int) -> None:
    compare(
        SPANS,
        NUM_POSITIONS,
        chain_length,
        dtype=torch.float64,
        value_tolerance=1e-12,
        gradient_tolerance=1e-12,
    )


def test_bfloat16_accumulates_in_float32() -> None:
    compare(
        SPANS,
        NUM_POSITIONS,
        4,
        dtype=torch.bfloat16,
        value_tolerance=0.05,
        gradient_tolerance=0.2,
    )


@pytest.mark.parametrize("window", [None, 150])
def test_blocks_larger_than_a_kernel_tile(window: int | None) -> None:
    spans = (SpanOfStarts(0, 290, 600), SpanOfStarts(601, 601, 700))
    compare(spans, 701, 2, heads=1, kv=1, gradient_tolerance=2e-5, window=window)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 4, 9, 1000])
def test_every_kernel_equals_a_dense_softmax(dtype: torch.dtype, window: int | None) -> None:
    value, gradient = {torch.bfloat16: (0.05, 0.2), torch.float64: (1e-12, 1e-12)}.get(
        dtype, (2e-6, 1e-5)
    )
    for attention in get_args(AttentionName):
        if attention == "flash" and dtype == torch.float64:
            continue
        compare(
            SPANS,
            NUM_POSITIONS,
            3,
            dtype=dtype,
            value_tolerance=value,
            gradient_tolerance=gradient,
            window=window,
            attention=attention,
        )


def test_a_dtype_without_a_flash_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no flash attention for torch.float64 .*reference"):
        attend(tensors(SPANS, NUM_POSITIONS, 0, 2, 1), SPANS, attention="flash")


@settings(max_examples=40, deadline=None)
@given(
    samples=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=0, max_size=3),
        min_size=1,
        max_size=3,
    ),
    chain_length=st.integers(0, 6),
    window=st.none() | st.integers(7, 12),
    attention=st.sampled_from(get_args(AttentionName)),
)
def test_any_spans(
    samples: list[list[tuple[int, int]]],
    chain_length: int,
    window: int | None,
    attention: AttentionName,
) -> None:
    spans, at = [], 0
    for gaps_and_lengths in samples:
        sample = at
        for gap, length in gaps_and_lengths:
            spans.append(SpanOfStarts(sample, at + gap, at + gap + length))
            at += gap + length
        at += 1
    if spans:
        compare(spans, at, chain_length, window=window, attention=attention)


def test_no_starts() -> None:
    leaves = [leaf.float().requires_grad_() for leaf in tensors((), 5, 2, 4, 2)]
    out = attend(leaves, ())
    assert out.shape == (0, 4, 8)
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), leaves))


def test_scores_far_apart_do_not_overflow() -> None:
    """A chain key that outweighs the rest by e^200, and one that weighs nothing."""
    spans = (SpanOfStarts(0, 0, 4),)
    leaves = [leaf.float() for leaf in tensors(spans, 4, 2, 1, 1)]
    leaves[0] = torch.ones_like(leaves[0])
    leaves[3] = torch.full_like(leaves[3], 200 / 8**0.5)
    leaves[5] = torch.full_like(leaves[5], -1e4)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = attend(leaves, spans)
    torch.testing.assert_close(out, leaves[4], rtol=0, atol=1e-6)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), leaves))


def test_no_tensor_of_starts_times_positions() -> None:
    num_positions, chain_length = 1024, 3
    spans = (SpanOfStarts(0, 300, 1000),)
    leaves = [
        leaf.float().requires_grad_() for leaf in tensors(spans, num_positions, chain_length, 2, 1)
    ]
    with Largest() as largest, bytes_saved() as saved:
        out = attend(leaves, spans)
        torch.autograd.grad(out.sum(), leaves)
    biggest = num_positions * 2 * 8
    assert largest.numel <= biggest
    # q and out of two heads, k and v of one, the chain, and the log-sum-exp.
    assert saved[0] <= 4 * biggest * (2 + 1 + chain_length + 1)
