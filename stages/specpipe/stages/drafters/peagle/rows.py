"""The masked rows of a batch: which starts have how many, and where their outputs belong.

A start at position i whose last head is k has the masked rows 1 .. k-1, at the positions i+1 ..
i+k-1; the output of row d is what head d+1 takes.

Legend: K heads, N starts, n starts of a group, B masked rows of each of them, R masked rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.samples.batch import Batch

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """Starts with equally many masked rows each."""

    starts_n: Ids
    """Which of the batch's."""
    num_rows: int
    """B."""
    layout: Layout

    @property
    def total(self) -> int:
        return len(self.starts_n) * self.num_rows


@dataclass(frozen=True, slots=True)
class MaskedRows:
    """Groups that are computed together; a row's place among theirs is group, start, depth."""

    groups: tuple[Group, ...]

    @property
    def starts_R(self) -> Tensor:
        """Which start of the batch each row is of."""
        parts = [np.repeat(group.starts_n, group.num_rows) for group in self.groups]
        return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]))

    @property
    def depths_R(self) -> Tensor:
        """How far each row stands beyond its start."""
        parts = [np.tile(np.arange(1, g.num_rows + 1), len(g.starts_n)) for g in self.groups]
        return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]))


def masked_rows(batch: Batch, most: int | None = None) -> Iterator[MaskedRows]:
    """All of a batch that some head uses; about `most` at a time, None: together."""
    depths_N = _depths(batch.rows_KN.cpu().numpy())
    positions_N, samples_N = _places(batch)
    now: list[Group] = []
    for depth in np.unique(depths_N[depths_N > 0]).tolist():
        every = np.flatnonzero(depths_N == depth)
        num_parts = 1 if most is None else -(-len(every) * depth // most)
        for starts_n in np.array_split(every, num_parts):
            layout = Layout.of_chosen(positions_N[starts_n].tolist(), samples_N[starts_n].tolist())
            group = Group(starts_n, depth, layout)
            if most is not None and now and sum(g.total for g in now) + group.total > most:
                yield MaskedRows(tuple(now))
                now = []
            now.append(group)
    yield MaskedRows(tuple(now))


def _depths(rows_KN: Ids) -> Ids:
    """Masked rows of each start: one less than its last head that is used."""
    last_N = len(rows_KN) - 1 - np.argmax(rows_KN[::-1] >= 0, axis=0)
    return np.where((rows_KN >= 0).any(axis=0), last_N, 0)


def _places(batch: Batch) -> tuple[Ids, Ids]:
    """Packed position of each start, and where its sample begins."""
    positions = [np.arange(span.begin, span.end) for span in batch.spans]
    samples = [np.full(span.num_starts, span.sample) for span in batch.spans]
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *positions]), np.concatenate([none, *samples])
