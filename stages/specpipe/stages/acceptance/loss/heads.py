"""The matrices that turn a drafter's outputs into logits, as its architecture has them.

Legend: K heads, R rows of a head, D draft vocabulary, W width of a block, X width of all blocks of
a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """Each head's matrix, as blocks along its input: logits = sum of hidden_RW @ block_DW.T.

    A block that does not require grad is frozen: no gradient of it is made. It may be of another
    dtype than the hidden states. A bfloat16 block on a GPU is multiplied with float32 states
    rounded to bfloat16, and summed in float32, as the verifier's head is; every other one is
    multiplied as a copy in the dtype of the states, which is made anew by each call: whoever has
    the memory gives that copy instead.
    """

    matrices: tuple[tuple[Tensor, ...], ...]
    """The blocks [D, W] of each of the K heads, or of the one matrix that all of them share."""

    @classmethod
    def shared(cls, *blocks: Tensor) -> "Heads":
        """One matrix for all heads, of one block or of several side by side."""
        return cls((blocks,))

    @classmethod
    def per_head(cls, matrices: Sequence[Tensor]) -> "Heads":
        """A matrix of each head's own, of one block."""
        return cls(tuple((matrix,) for matrix in matrices))

    def of(self, k: int) -> tuple[Tensor, ...]:
        """The blocks of head k, counted from 0."""
        return self.matrices[0 if len(self.matrices) == 1 else k]

    @property
    def vocab_size(self) -> int:
        """D."""
        return len(self.matrices[0][0])

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """Each block once, also one that several heads have."""
        return tuple({id(block): block for blocks in self.matrices for block in blocks}.values())

    def ready_for(self, hidden: Tensor) -> "Heads":
        """The same matrices, as they are multiplied with `hidden`."""
        ready = {id(block): _ready_for(hidden, block) for block in self.blocks}
        return Heads(tuple(tuple(ready[id(b)] for b in blocks) for blocks in self.matrices))


def split(hidden_RX: Tensor, blocks: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The columns of each block, as views."""
    parts: tuple[Tensor, ...] = torch.split(hidden_RX, [block.shape[1] for block in blocks], dim=1)
    return parts


def logits_of(hidden_RX: Tensor, blocks: Sequence[Tensor], out_RD: Tensor | None = None) -> Tensor:
    """Logits [R, D] of rows of a head whose blocks are ready; written to `out_RD` if it is given.

    The first block's product is written, those of others are added in place.
    """
    (hidden_RW, block_DW), *others = zip(split(hidden_RX, blocks), blocks, strict=True)
    logits_RD = product(hidden_RW, block_DW.T, out_RD)
    for hidden_RW, block_DW in others:
        if block_DW.dtype == logits_RD.dtype:
            logits_RD.addmm_(hidden_RW, block_DW.T)
        else:
            rounded_RW = hidden_RW.to(block_DW.dtype)
            torch.addmm(logits_RD, rounded_RW, block_DW.T, logits_RD.dtype, out=logits_RD)
    return logits_RD


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right in the dtype of `left`; `right` is one of the two that `ready_for` leaves."""
    if left.dtype == right.dtype:
        return torch.mm(left, right, out=out)
    return torch.mm(left.to(right.dtype), right, left.dtype, out=out)


def _ready_for(hidden: Tensor, block: Tensor) -> Tensor:
    is_summed_wide = block.is_cuda and block.dtype == torch.bfloat16
    if is_summed_wide and hidden.dtype == torch.float32:
        return block
    return block.to(hidden.dtype)
