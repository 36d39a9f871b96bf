"""The draft vocabulary: which target tokens the drafter can propose.

Legend: V target vocabulary, D draft vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.stages.storage.vocab import VocabStatistics


@dataclass(frozen=True, slots=True)
class VocabMap:
    """Draft id -> target id, ascending: `target_ids_D` is int64 [D]."""

    target_ids_D: Tensor
    vocab_size: int

    @property
    def size(self) -> int:
        return len(self.target_ids_D)

    @property
    def d2t(self) -> Tensor:
        """Offsets, int64 [D]: draft id i is target id d2t[i] + i."""
        return self.target_ids_D - torch.arange(self.size)

    @property
    def t2d(self) -> Tensor:
        """bool [V]: whether a target token is in the draft vocabulary."""
        mask_V = torch.zeros(self.vocab_size, dtype=torch.bool)
        mask_V[self.target_ids_D] = True
        return mask_V

    def draft_ids(self) -> Tensor:
        """int64 [V]: the draft id of each target token, -1 where it has none."""
        ids_V = torch.full((self.vocab_size,), -1, dtype=torch.int64)
        ids_V[self.target_ids_D] = torch.arange(self.size)
        return ids_V

    def tensors(self) -> dict[str, Tensor]:
        return {"d2t": self.d2t, "t2d": self.t2d}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "VocabMap":
        """From d2t and t2d; raises IntegrityError where they are not one consistent map."""
        d2t, t2d = tensors["d2t"], tensors["t2d"]
        if (d2t.dtype, t2d.dtype, d2t.ndim, t2d.ndim) != (torch.int64, torch.bool, 1, 1):
            raise IntegrityError("d2t is no list of integers, or t2d no list of booleans")
        target_ids_D = d2t + torch.arange(len(d2t))
        if bool(((target_ids_D < 0) | (target_ids_D >= len(t2d))).any()):
            raise IntegrityError(
                f"d2t leads outside the vocabulary of {len(t2d)}: it must hold offsets (target id"
                " minus draft id), not target ids"
            )
        if not bool((target_ids_D.diff() > 0).all()):
            raise IntegrityError("d2t does not hold ascending target ids (d2t[i] + i)")
        vocab = cls(target_ids_D, len(t2d))
        if num_other := int((vocab.t2d != t2d).sum()):
            raise IntegrityError(
                "d2t and t2d do not describe the same draft vocabulary:"
                f" {num_other} tokens are in one map only"
            )
        return vocab


def default_size(size: int | None, vocab_size: int) -> int:
    """D as it is asked for, or its default; raises ConfigError where it is more than there is."""
    size = min(32_000, vocab_size) if size is None else size
    if size > vocab_size:
        raise ConfigError(
            f"draft_vocab_size {size} is larger than the target's vocabulary of {vocab_size}"
        )
    return size


def choose_vocab(
    statistics: VocabStatistics, size: int | None, by: Literal["mass", "count"]
) -> VocabMap:
    """The `size` tokens with the largest verifier mass, or supervised count, of a dump.

    `mass` maximises the attainable acceptance m = sum of p over D on that dump. Ties go to the
    smaller token id. `size` None means 32,000 or the whole vocabulary.
    """
    vocab_size = len(statistics.mass_V)
    size = default_size(size, vocab_size)
    score_V = statistics.mass_V if by == "mass" else statistics.count_V.astype(np.float64)
    chosen = np.argsort(-score_V, kind="stable")[:size]
    return VocabMap(torch.from_numpy(np.sort(chosen).astype(np.int64)), vocab_size)
