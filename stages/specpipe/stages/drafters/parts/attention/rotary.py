"""Rotary position embedding.

Legend: N rows, n heads, E head size.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specpipe.schemas.drafters.base import LayerShape

CosSin = tuple[Tensor, Tensor]


class Rotary(nn.Module):
    """cos and sin of the angles, from transformers' rope parameters."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        config = LlamaConfig(
            # Only its head size counts here; transformers wants the one to divide the other.
            hidden_size=shape.num_attention_heads * shape.head_dim,
            num_attention_heads=shape.num_attention_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=shape.max_position_embeddings,
            rope_parameters=dict(shape.rope_parameters),
        )
        self.rope = LlamaRotaryEmbedding(config)

    def forward(self, positions_N: Tensor, dtype: torch.dtype) -> CosSin:
        """cos and sin, each [N, 1, E]."""
        with torch.autocast(positions_N.device.type, enabled=False):
            like = torch.empty(0, dtype=dtype, device=positions_N.device)
            cos, sin = self.rope(like, positions_N.unsqueeze(0))
        return cos[0].unsqueeze(1), sin[0].unsqueeze(1)


def rotate(x_NnE: Tensor, cos_sin: CosSin) -> Tensor:
    """Turn the planes of dimensions e and e + E/2; in the dtype that comes in."""
    cos, sin = cos_sin
    first, second = x_NnE.chunk(2, dim=-1)
    return (x_NnE * cos + torch.cat([-second, first], dim=-1) * sin).to(x_NnE.dtype)
