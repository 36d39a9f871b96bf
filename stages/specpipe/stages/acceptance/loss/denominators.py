"""Denominators of the heads' losses, counted before any pass of the model.

A loss is a mean over the starts of the whole global batch. The counts of its micro-batches, and of
the ranks of a distributed run, are added (`+`, or an all-reduce of `counts_2K`) before the first
of them is trained on; the losses of the micro-batches then add up to the loss of all of them.

Legend: K heads, N starts, S verifier rows, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.stages.samples.batch import Batch


@dataclass(frozen=True, slots=True)
class Denominators:
    """Each head's valid starts, weighted by multiplicity, as one tensor."""

    counts_2K: Tensor
    """float64: all valid starts; those whose token is in the draft vocabulary (for `ce`)."""

    @classmethod
    def of(cls, batch: Batch, draft_ids_V: Tensor) -> "Denominators":
        """Those of one batch, on its device; `draft_ids_V` is int64, -1 outside D."""
        weights_KN = (batch.rows_KN >= 0) * batch.weights_N.double()
        in_vocab_S = draft_ids_V[batch.next_token_S] >= 0
        if not len(in_vocab_S):
            return cls(torch.stack([weights_KN.sum(1)] * 2))
        inside_KN = weights_KN * in_vocab_S[batch.rows_KN.clamp(min=0)]
        return cls(torch.stack([weights_KN.sum(1), inside_KN.sum(1)]))

    @property
    def starts_K(self) -> Tensor:
        return self.counts_2K[0]

    @property
    def inside_K(self) -> Tensor:
        """Starts whose token is in the draft vocabulary."""
        return self.counts_2K[1]

    def __add__(self, other: "Denominators") -> "Denominators":
        return Denominators(self.counts_2K + other.counts_2K)

    def mean(self, sums_K: Tensor) -> Tensor:
        """Sums over starts as means, [K]; 0 for a head without a start."""
        return sums_K / self.starts_K.clamp(min=torch.finfo(torch.float32).tiny)
