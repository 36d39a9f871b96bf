"""The passes over [rows, D] that the loss takes, fused for CUDA: one program walks one row.

What `PlainRows` does in a dozen passes is three reads of the logits and two of p~, and one write.
Imported only where it runs (or under TRITON_INTERPRET=1, which runs it on a CPU).

Legend: R rows of a head in a chunk, D draft vocabulary.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from specpipe.stages.acceptance.loss.chunk import VerifierChunk
from specpipe.stages.acceptance.loss.plain_rows import GradientOf, RowStats

_COLUMNS = 4096
"""Of a row that a program holds at a time."""


class TritonRows:
    """As `PlainRows`; float32 only."""

    def alpha(self, logits_RD: Tensor, chunk: VerifierChunk, at_R: Tensor) -> Tensor:
        return self.walk(logits_RD, chunk, at_R, None).alpha_R

    def walk(
        self,
        logits_RD: Tensor,
        chunk: VerifierChunk,
        at_R: Tensor,
        gradient_of: GradientOf | None,
    ) -> RowStats:
        num_rows, size = logits_RD.shape
        logsum_R, score_R, alpha_R, below_R = logits_RD.new_empty(4, num_rows)
        argmax_R = torch.empty_like(at_R)
        _look[(num_rows,)](
            logits_RD, chunk.pt_RD, chunk.mass_R, at_R, size,
            argmax_R, logsum_R, score_R, alpha_R, below_R,
            columns=_columns(size),
        )  # fmt: skip
        if gradient_of is not None:
            gradient = gradient_of(slice(num_rows), alpha_R)
            none_R = torch.zeros_like(alpha_R)
            overlap_R = none_R if gradient.overlap_B is None else gradient.overlap_B.contiguous()
            pt_weight_R = none_R if gradient.pt_weight_B is None else gradient.pt_weight_B
            _gradient[(num_rows,)](
                logits_RD, chunk.pt_RD, chunk.mass_R, at_R, size,
                logsum_R, torch.addcmul(gradient.q_weight_B, overlap_R, below_R),
                overlap_R, pt_weight_R.contiguous(),
                columns=_columns(size),
            )  # fmt: skip
        return RowStats(argmax_R, logsum_R, score_R, alpha_R)


def _columns(size: int) -> int:
    return min(_COLUMNS, int(triton.next_power_of_2(size)))


@triton.jit  # type: ignore[untyped-decorator]
def _look(
    logits: Any,
    pt: Any,
    mass: Any,
    at: Any,
    size: Any,
    argmax: Any,
    logsum: Any,
    score: Any,
    alpha: Any,
    below: Any,
    columns: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    held = tl.load(at + row)
    logits += row * size
    pt += held * size
    # One look for the largest logit, the sum that belongs to it, and the verifier's score.
    top = -float("inf")
    total, dot, best = 0.0, 0.0, 0
    for begin in range(0, size, columns):
        column = begin + tl.arange(0, columns)
        inside = column < size
        z = tl.load(logits + column, mask=inside, other=-float("inf"))
        p = tl.load(pt + column, mask=inside, other=0.0)
        dot += tl.sum(tl.where(inside, p * z, 0.0), axis=0)
        here = tl.max(z, axis=0)
        first = tl.min(tl.where(z == here, column, size), axis=0)
        best = tl.where(here > top, first, best)
        larger = tl.maximum(top, here)
        total = total * tl.exp(top - larger) + tl.sum(tl.exp(z - larger), axis=0)
        top = larger
    sums = top + tl.log(total)
    # One more for the overlap, which needs q.
    m = tl.load(mass + held)
    overlap, less = 0.0, 0.0
    for begin in range(0, size, columns):
        column = begin + tl.arange(0, columns)
        inside = column < size
        q = tl.exp(tl.load(logits + column, mask=inside, other=-float("inf")) - sums)
        p = tl.load(pt + column, mask=inside, other=0.0) * m
        overlap += tl.sum(tl.minimum(p, q), axis=0)
        less += tl.sum(tl.where(q < p, q, 0.0), axis=0)
    tl.store(argmax + row, best)
    tl.store(logsum + row, sums)
    tl.store(score + row, dot)
    tl.store(alpha + row, overlap)
    tl.store(below + row, less)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(
    logits: Any,
    pt: Any,
    mass: Any,
    at: Any,
    size: Any,
    logsum: Any,
    q_weight: Any,
    overlap: Any,
    pt_weight: Any,
    columns: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    held = tl.load(at + row)
    logits += row * size
    pt += held * size
    sums, m = tl.load(logsum + row), tl.load(mass + held)
    a, b, c = tl.load(q_weight + row), tl.load(overlap + row), tl.load(pt_weight + row)
    for begin in range(0, size, columns):
        column = begin + tl.arange(0, columns)
        inside = column < size
        q = tl.exp(tl.load(logits + column, mask=inside, other=-float("inf")) - sums)
        p = tl.load(pt + column, mask=inside, other=0.0)
        gradient = q * (a - tl.where(q < p * m, b, 0.0)) - c * p
        tl.store(logits + column, gradient, mask=inside)
