"""Small drafters of blocks of any architecture, with random weights, and a sample for them.

Legend: T tokens, V vocabulary, D draft vocabulary, H hidden size, K draft tokens.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from specpipe.schemas.drafters.block import BlockShape
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.parts.block.architecture import BlockArchitecture
from specpipe.stages.drafters.parts.block.model import BlockDrafter
from specpipe.stages.samples.batch import DrafterSample
from specpipe.stages.storage.shard.states import SampleStates
from tests.drafters.toys import Given

H, V, D, T, K = 16, 40, 30, 17, 4
BEGIN = 5
"""The first supervised token."""
SHAPE: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": H,
    "target_hidden_size": H,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "max_position_embeddings": 64,
    "vocab_size": V,
    "draft_vocab_size": V,
    "aux_layers": (1, 2, 4),
    "causal": False,
    "block_size": K + 1,
    "mask_token": 3,
    "own_lm_head": False,
}


def target_of(generator: torch.Generator) -> Given:
    embedding_VH, head_VH = (
        torch.randn(V, H, generator=generator).bfloat16().float() for _ in range(2)
    )
    return Given(embedding_VH, head_VH)


def weights_of(
    kind: BlockArchitecture[Any], shape: BlockShape, generator: torch.Generator
) -> dict[str, Tensor]:
    """Values that bfloat16 holds, so that a file loses nothing."""
    expected = kind.expected_tensors(shape, embedding=False, lm_head=shape.own_lm_head)
    return {
        name: (0.5 * torch.randn(size, generator=generator)).bfloat16().float()
        for name, (size, dtype) in expected.items()
        if dtype == "float"
    }


def sample_of(shape: BlockShape, generator: torch.Generator) -> DrafterSample:
    aux_TLH = torch.randn(T, shape.num_aux, H, generator=generator).bfloat16()
    zeros_S = np.zeros(T - BEGIN, dtype=np.float32)
    states = SampleStates(
        aux_TLH=aux_TLH.view(torch.uint16).numpy(),
        final_SH=np.zeros((T - BEGIN, H), dtype=np.uint16),
        logz_S=zeros_S,
        token_logprob_S=zeros_S,
        argmax_S=zeros_S.astype(np.int32),
    )
    ids_T = torch.randint(0, V, (T,), generator=generator).int().numpy()
    return DrafterSample(ids_T, (np.arange(T) >= BEGIN).astype(np.uint8), states)


def model_of(
    kind: BlockArchitecture[Any],
    shape: BlockShape,
    weights: dict[str, Tensor],
    target: Given,
    ids_D: Tensor,
) -> BlockDrafter:
    model = kind.build(shape, target, ids_D, Runtime())
    model.load_state_dict(weights)
    return model
