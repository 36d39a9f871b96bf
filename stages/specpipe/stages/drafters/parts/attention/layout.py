"""The layout of attention: which queries see which step-1 keys.

Queries and keys stand on packed axes. A span of queries sees the keys of its own sample: everything
before the span, and causally the span itself; with a window of w, only the last w of these, its own
position included.

Legend: T keys (packed positions), N queries, C those that a span covers, R these with what lies
between a sample's spans.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from specpipe.stages.samples.batch import SpanOfStarts

TILE = 128
"""Queries of one block under a window: its keys are then at most window + TILE."""

SPREAD = 1024
"""Positions from a tile's first start to its last are fewer: its masks are as wide as that."""


@dataclass(frozen=True, slots=True)
class QuerySpan:
    """Queries from row `query` on, at the positions [begin, end) of the sample at `sample`."""

    query: int
    sample: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Block:
    """Queries [q0, q1) against keys [k0, k1), of which each query sees a part.

    The last query stands at the last key where `causal`, and beyond it else.
    """

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool
    window: int | None = None
    """Most keys that a query sees; only of causal blocks that reach further back than that."""

    @property
    def is_square(self) -> bool:
        return self.q1 - self.q0 == self.k1 - self.k0

    def hidden(self, device: torch.device) -> Tensor:
        """bool [q, k]: keys that a query of a causal block must not see."""
        queries, keys = self.q1 - self.q0, self.k1 - self.k0
        seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        if self.window is not None:
            seen = seen.triu(keys - queries - self.window + 1)
        return ~seen


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries [q0, q1) at ascending starts of the sample at `sample`, from `first` to `last`."""

    q0: int
    q1: int
    sample: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Runs:
    """One run of queries per sample, from its first to its last: what kernels for sequences of
    various lengths take. Queries between spans are filled in; what they give is dropped."""

    queries_C: Tensor
    """int64: the rows of queries that a span covers."""
    rows_C: Tensor
    """int64: where each of these stands among the R."""
    keys_T: Tensor
    """int64: the positions that are keys, sample after sample, each up to its last query."""
    ends_R: Tensor
    """int32 [samples + 1]: cumulative queries."""
    ends_T: Tensor
    """int32 [samples + 1]: cumulative keys."""
    num_rows: int
    most_rows: int
    most_keys: int


class Layout:
    """Spans of queries in the order of their rows."""

    def __init__(self, spans: Sequence[QuerySpan]) -> None:
        self.spans = tuple(spans)
        self.runs = cache(self._runs)
        self.starts = cache(self._starts)

    @classmethod
    def of_starts(cls, spans: Sequence[SpanOfStarts]) -> "Layout":
        """One query per start, span after span."""
        query, out = 0, []
        for span in spans:
            out.append(QuerySpan(query, span.sample, span.begin, span.end))
            query += span.num_starts
        return cls(out)

    @classmethod
    def of_chosen(cls, starts: Sequence[int], samples: Sequence[int]) -> "Layout":
        """One query per start: ascending packed positions, each with where its sample begins.

        Consecutive starts of one sample are one span.
        """
        assert len(starts) == len(samples), "each start has a sample"
        steps, changes = np.diff(starts), np.diff(samples)
        assert (steps > 0).all(), "starts ascend"
        cuts = np.flatnonzero((steps != 1) | (changes != 0)) + 1
        edges = [0, *cuts.tolist(), len(starts)] if len(starts) else []
        return cls(
            [
                QuerySpan(row, int(samples[row]), int(starts[row]), int(starts[end - 1]) + 1)
                for row, end in pairwise(edges)
            ]
        )

    @classmethod
    def of_positions(cls, spans: Sequence[SpanOfStarts]) -> "Layout":
        """A query at every position up to the last start of its sample; rows are positions."""
        return cls(
            [
                QuerySpan(sample, sample, sample, max(span.end for span in of_sample))
                for sample, of_sample in groupby(spans, attrgetter("sample"))
            ]
        )

    def blocks(self, window: int | None) -> Iterator[Block]:
        """Blocks whose parts add up to each query's softmax."""
        for span in self.spans:
            whole = span.end if window is None else min(span.end, span.sample + window)
            whole = max(whole, span.begin)
            if whole > span.begin:
                q0, q1 = span.query, span.query + whole - span.begin
                if span.begin > span.sample:
                    yield Block(q0, q1, span.sample, span.begin, causal=False)
                yield Block(q0, q1, span.begin, whole, causal=True)
            for begin in range(whole, span.end, TILE):
                assert window is not None
                end = min(begin + TILE, span.end)
                q0 = span.query + begin - span.begin
                first = max(span.sample, begin - window + 1)
                yield Block(q0, q0 + end - begin, first, end, causal=True, window=window)

    def tiles(self, most: int) -> Iterator[Tile]:
        """Up to `most` starts of one sample each, not far apart; together all of them."""
        for sample, group in groupby(self.spans, attrgetter("sample")):
            spans = list(group)
            starts = np.concatenate([np.arange(span.begin, span.end) for span in spans])
            row = spans[0].query
            assert spans[-1].query + spans[-1].end - spans[-1].begin == row + len(starts)
            at = 0
            while at < len(starts):
                first = int(starts[at])
                end = min(at + most, int(np.searchsorted(starts, first + SPREAD)))
                yield Tile(row + at, row + end, sample, first, int(starts[end - 1]))
                at = end

    def _starts(self, device: torch.device) -> Tensor:
        num_rows = max((s.query + s.end - s.begin for s in self.spans), default=0)
        starts_N = torch.zeros(num_rows, dtype=torch.int64)
        for span in self.spans:
            rows = slice(span.query, span.query + span.end - span.begin)
            starts_N[rows] = torch.arange(span.begin, span.end)
        return starts_N.to(device)

    def _runs(self, device: torch.device) -> Runs:
        queries, rows, keys, row_counts, key_counts = [], [], [], [0], [0]
        at = 0
        for sample, group in groupby(self.spans, attrgetter("sample")):
            spans = list(group)
            first, last = spans[0].begin, spans[-1].end
            queries += [torch.arange(s.query, s.query + s.end - s.begin) for s in spans]
            rows += [torch.arange(s.begin, s.end) - first + at for s in spans]
            keys.append(torch.arange(sample, last))
            row_counts.append(last - first)
            key_counts.append(last - sample)
            at += last - first
        empty = torch.zeros(0, dtype=torch.int64)
        return Runs(
            queries_C=torch.cat([empty, *queries]).to(device),
            rows_C=torch.cat([empty, *rows]).to(device),
            keys_T=torch.cat([empty, *keys]).to(device),
            ends_R=torch.tensor(row_counts).cumsum(0).to(device, torch.int32),
            ends_T=torch.tensor(key_counts).cumsum(0).to(device, torch.int32),
            num_rows=at,
            most_rows=max(row_counts),
            most_keys=max(key_counts),
        )
