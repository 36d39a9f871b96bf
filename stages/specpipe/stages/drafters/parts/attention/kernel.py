"""Attention over the step-1 keys, with its log-sum-exp: one signature, several kernels.

CPU: torch's flash kernel, block by block. CUDA: torch's flash kernel for sequences of various
lengths in half precision, its memory-efficient kernel, block by block, in float32. `reference` is
written out; it serves every device and dtype, in memory that grows with the square of the length.

Legend: T keys, N queries, h query heads, g key/value heads, E head size.
"""

from typing import Protocol

import torch
from torch import Tensor

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import AttentionName
from specpipe.stages.drafters.parts.attention.flash_blocks import FlashBlocks
from specpipe.stages.drafters.parts.attention.flash_varlen import FlashVarlen
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.piece import FlashPiece, PieceKernel, PlainPiece
from specpipe.stages.drafters.parts.attention.reference import ReferenceAttention


class AttentionKernel(Protocol):
    """softmax(q k^T / sqrt(E)) v over the keys that `layout` and `window` let each query see."""

    def forward(
        self, q_NhE: Tensor, k_TgE: Tensor, v_TgE: Tensor, layout: Layout, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Output [N, h, E] and log-sum-exp [N, h], both float32 (float64 for float64).

        Rows that no span covers are 0, with a log-sum-exp of -inf.
        """

    def backward(
        self,
        dout_NhE: Tensor,
        q_NhE: Tensor,
        k_TgE: Tensor,
        v_TgE: Tensor,
        out_NhE: Tensor,
        lse_Nh: Tensor,
        layout: Layout,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v for a given output and log-sum-exp.

        `out` and `lse` may be those of a larger softmax of which this attention is a part.
        """


def attention_kernel(name: AttentionName, q_NhE: Tensor) -> AttentionKernel:
    """The kernel of that name for queries like these; `auto` is `flash` where there is one.

    Raises ConfigError for `flash` where there is none.
    """
    if not _takes_flash(name, q_NhE):
        return ReferenceAttention()
    if q_NhE.is_cpu or q_NhE.dtype == torch.float32:
        return FlashBlocks()
    return FlashVarlen()


def piece_kernel(name: AttentionName, q: Tensor) -> PieceKernel:
    """The same choice for attention that goes piece by piece."""
    return FlashPiece() if _takes_flash(name, q) else PlainPiece()


def _takes_flash(name: AttentionName, q: Tensor) -> bool:
    """Whether the flash kernels serve queries like `q` [..., E] and are asked for."""
    has_flash = q.dtype != torch.float64 and (q.is_cpu or q.shape[-1] % 8 == 0)
    if name == "flash" and not has_flash:
        raise ConfigError(
            f"there is no flash attention for {q.dtype} and heads of {q.shape[-1]} on"
            f" {q.device.type}: it takes half precision or float32, and on a GPU heads of a"
            " multiple of 8; use --attention reference"
        )
    return has_flash and name != "reference"
