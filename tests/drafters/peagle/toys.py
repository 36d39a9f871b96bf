"""Small random P-EAGLE drafters, and samples for them.

Legend: V vocabulary, H hidden size.
"""

import torch
from torch import Tensor

from specpipe.schemas.drafters.peagle import PeagleShape
from specpipe.stages.drafters.peagle.model import Peagle
from tests.drafters.toys import THETA, H, V

MASK = 7


def shape_of(draft_vocab_size: int = V, **changes: object) -> PeagleShape:
    """4 query heads on 2 key/value heads, and a small theta so that rope bites."""
    shape = PeagleShape(
        hidden_size=H,
        target_hidden_size=H,
        intermediate_size=10,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        max_position_embeddings=64,
        vocab_size=V,
        draft_vocab_size=draft_vocab_size,
        aux_layers=(1, 2, 4),
        norm_before_residual=True,
        norm_before_fc=True,
        mask_token=MASK,
    )
    return shape.model_copy(update=changes)


def random_weights(model: Peagle, seed: int) -> None:
    """Every parameter random (norm weights too), numbers that bfloat16 holds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                values = 1 + 0.3 * values
            elif parameter.ndim == 2:
                values *= 1.2 / parameter.shape[-1] ** 0.5
            parameter.copy_(values.bfloat16())


def embedding(seed: int = 0) -> Tensor:
    return torch.randn(V, H, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
