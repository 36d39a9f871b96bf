"""Attention of blocks against one softmax per slot: kernels, gradients, sparse starts, windows.

Legend: T packed positions, N starts, B slots, h query heads, g key/value heads, E head size.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import AttentionName
from specpipe.stages.drafters.parts.attention import layout as layout_file
from specpipe.stages.drafters.parts.attention import tiles as tiles_file
from specpipe.stages.drafters.parts.attention.block import BlockRule, block_attention
from specpipe.stages.drafters.parts.attention.chain import chain_attention
from specpipe.stages.drafters.parts.attention.layout import Layout, QuerySpan
from specpipe.stages.samples.batch import SpanOfStarts
from tests.drafters.toys import Largest, bytes_saved

FULL, CAUSAL = BlockRule(causal=False), BlockRule(causal=True)
Starts = Sequence[tuple[int, int]]
"""Packed positions of starts, each with where its sample begins."""


def dense(leaves: Sequence[Tensor], starts: Starts, rule: BlockRule) -> Tensor:
    """One softmax per start and slot, in loops."""
    q_NBhE, k_TgE, v_TgE, own_k_NBgE, own_v_NBgE = leaves
    group = q_NBhE.shape[2] // k_TgE.shape[1]
    reach = rule.window or 10**9
    out_NBhE = torch.zeros_like(q_NBhE)
    for n, (start, sample) in enumerate(starts):
        for b in range(q_NBhE.shape[1]):
            here = start + rule.offset + b
            context = [j for j in range(sample, start + 1) if j > here - reach]
            own = [
                c
                for c in range(q_NBhE.shape[1])
                if start + rule.offset + c > here - reach and (c <= b or not rule.causal)
            ]
            keys = torch.cat([k_TgE[context], own_k_NBgE[n, own]]).repeat_interleave(group, 1)
            values = torch.cat([v_TgE[context], own_v_NBgE[n, own]]).repeat_interleave(group, 1)
            scores = torch.einsum("he,khe->hk", q_NBhE[n, b], keys) * q_NBhE.shape[-1] ** -0.5
            out_NBhE[n, b] = torch.einsum("hk,khe->he", scores.softmax(-1), values)
    return out_NBhE


def tensors(starts: Starts, num_positions: int, B: int, heads: int, kv: int) -> list[Tensor]:
    """q, context's k and v, own k and v; float64."""
    generator = torch.Generator().manual_seed(17)
    N = len(starts)
    shapes = [(N, B, heads), *[(num_positions, kv)] * 2, *[(N, B, kv)] * 2]
    return [torch.randn(*shape, 8, generator=generator, dtype=torch.float64) for shape in shapes]


def layout_of(starts: Starts) -> Layout:
    return Layout.of_chosen([at for at, _ in starts], [sample for _, sample in starts])


def attend(leaves: Sequence[Tensor], layout: Layout, rule: BlockRule) -> Tensor:
    q, k, v, own_k, own_v = leaves
    return block_attention(q, (k, v), (own_k, own_v), layout, rule)


TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 2e-5),
    torch.bfloat16: (0.05, 0.2),
}


def compare(
    starts: Starts,
    num_slots: int,
    rule: BlockRule,
    heads: tuple[int, int] = (4, 2),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Value and every gradient equal those of the loops, from the same rounded numbers."""
    num_positions = max((at for at, _ in starts), default=0) + 3
    exact = tensors(starts, num_positions, num_slots, *heads)
    exact = [leaf.to(dtype).double().requires_grad_() for leaf in exact]
    leaves = [leaf.detach().to(device, dtype).requires_grad_() for leaf in exact]
    out, want = attend(leaves, layout_of(starts), rule), dense(exact, starts, rule)
    value_tolerance, gradient_tolerance = TOLERANCES[dtype]
    assert out.dtype == dtype
    torch.testing.assert_close(out.double().cpu(), want, rtol=0, atol=value_tolerance)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    got = torch.autograd.grad(out, leaves, upstream.to(device))
    expected = torch.autograd.grad(want, exact, upstream.double())
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double().cpu(), other, rtol=0, atol=gradient_tolerance)


# A sample's first position, neighbours, a gap, another sample, and its neighbour in the next.
STARTS = ((0, 0), (1, 0), (5, 0), (9, 9), (17, 9), (18, 9), (19, 19), (40, 19))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("window", [None, 1, 3, 6, 12, 1000])
@pytest.mark.parametrize("rule", [FULL, CAUSAL])
def test_every_kernel_equals_a_dense_softmax(
    dtype: torch.dtype, window: int | None, rule: BlockRule
) -> None:
    kernels: tuple[AttentionName, ...] = ("auto", "reference")
    for attention in kernels:
        compare(STARTS, 4, replace(rule, window=window, attention=attention), dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=3),
    num_slots=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    rule=st.builds(
        BlockRule,
        causal=st.booleans(),
        window=st.none() | st.integers(1, 30),
        offset=st.integers(0, 3),
        attention=st.sampled_from(["auto", "flash", "reference"]),
    ),
    rows=st.integers(1, 60),
    spread=st.integers(1, 30),
)
def test_any_starts_and_tiles(
    samples: list[list[int]],
    num_slots: int,
    heads: tuple[int, int],
    rule: BlockRule,
    rows: int,
    spread: int,
) -> None:
    starts, at = [], 0
    for gaps in samples:
        sample = at
        for gap in gaps:
            at += gap
            starts.append((at - 1, sample))
        at += 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles_file, "ROWS", rows)
        patch.setattr(layout_file, "SPREAD", spread)
        if starts:
            compare(starts, num_slots, rule, heads)


@pytest.mark.parametrize("window", [None, 100, 250])
def test_pieces_larger_than_a_kernels_tile(window: int | None) -> None:
    starts = [(at, 0) for at in range(0, 700, 13)] + [(at, 800) for at in range(1000, 1010)]
    compare(starts, 8, replace(FULL, window=window), heads=(4, 1))


def test_a_blocks_triangle_is_the_chains_growing_diagonal() -> None:
    spans = (SpanOfStarts(0, 0, 1), SpanOfStarts(0, 3, 7), SpanOfStarts(9, 12, 30))
    starts = [(at, span.sample) for span in spans for at in range(span.begin, span.end)]
    q, k, v, own_k, own_v = tensors(starts, 31, 4, 4, 2)
    layout = Layout.of_starts(spans)
    for window in (None, 7):
        block = attend([q, k, v, own_k, own_v], layout, replace(CAUSAL, window=window))
        for b in range(4):
            chain = [(own_k[:, c], own_v[:, c]) for c in range(b + 1)]
            # The chain's query stands its own length beyond its start: it is slot b.
            step = chain_attention(q[:, b], (k, v), chain, layout, window)
            torch.testing.assert_close(block[:, b], step, rtol=0, atol=1e-12)


def test_consecutive_chosen_starts_are_the_spans_of_a_batch() -> None:
    spans = (SpanOfStarts(0, 0, 1), SpanOfStarts(0, 3, 7), SpanOfStarts(9, 9, 14))
    starts = [(at, span.sample) for span in spans for at in range(span.begin, span.end)]
    assert layout_of(starts).spans == Layout.of_starts(spans).spans
    assert layout_of(()).spans == ()


def test_no_starts_and_a_row_without_context() -> None:
    leaves = [leaf.float().requires_grad_() for leaf in tensors((), 5, 3, 4, 2)]
    out = attend(leaves, layout_of(()), FULL)
    assert out.shape == (0, 3, 4, 8)
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), leaves))
    # The second row is of no span: its slots see each other alone.
    leaves = [leaf.float() for leaf in tensors(((3, 0), (4, 0)), 5, 1, 2, 1)]
    out = attend(leaves, Layout([QuerySpan(0, 0, 3, 4)]), FULL)
    torch.testing.assert_close(out[1], leaves[4][1].expand(1, 2, 8))


def test_bfloat16_inside_autocast_is_that_outside() -> None:
    leaves = [leaf.bfloat16().requires_grad_() for leaf in tensors(STARTS, 43, 4, 4, 2)]

    def run() -> tuple[Tensor, ...]:
        out = attend(leaves, layout_of(STARTS), CAUSAL)
        return out, *torch.autograd.grad(out.float().square().sum(), leaves)

    want = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run()
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_a_dtype_without_a_flash_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no flash attention for torch.float64"):
        attend(tensors(STARTS, 43, 1, 2, 1), layout_of(STARTS), replace(FULL, attention="flash"))


def test_memory_is_linear_in_positions_and_slots() -> None:
    num_positions, num_slots, heads, kv = 4096, 4, 2, 1
    starts = [(at, 0) for at in range(0, num_positions, 16)]
    shapes = tensors(starts, num_positions, num_slots, heads, kv)
    leaves = [leaf.float().requires_grad_() for leaf in shapes]
    with Largest() as largest, bytes_saved() as saved:
        out = attend(leaves, layout_of(starts), FULL)
        torch.autograd.grad(out.sum(), leaves)
    rows = len(starts) * num_slots * heads
    # A tile's mask is the largest, and no larger for more positions.
    assert largest.numel <= tiles_file.ROWS * (layout_file.SPREAD + 1)
    assert largest.numel < rows * num_positions / 8
    # q and out, context and own keys and values, and the log-sum-exp.
    values = rows * 8 * 2 + num_positions * kv * 8 * 2 + len(starts) * num_slots * kv * 8 * 2
    assert saved[0] <= 4 * (values + rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
def test_the_cuda_kernel_accepts_the_call(dtype: torch.dtype, window: int | None) -> None:
    """Its shape functions run on the meta device, without a GPU."""
    q, k, v, own_k, own_v = (
        leaf.to("meta", dtype).requires_grad_() for leaf in tensors(STARTS, 43, 4, 4, 2)
    )
    out = attend([q, k, v, own_k, own_v], layout_of(STARTS), replace(FULL, window=window))
    assert (out.shape, out.dtype) == (q.shape, dtype)
    gradients = torch.autograd.grad(out.sum(), [q, k, v, own_k, own_v])
    assert [g.shape for g in gradients] == [x.shape for x in (q, k, v, own_k, own_v)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 6, 150])
@pytest.mark.parametrize("rule", [FULL, CAUSAL])
def test_the_cuda_kernel_equals_a_dense_softmax(
    dtype: torch.dtype, window: int | None, rule: BlockRule
) -> None:
    starts = [*STARTS, *((at, 60) for at in range(300, 700, 7))]
    compare(starts, 4, replace(rule, window=window), dtype=dtype, device="cuda")
