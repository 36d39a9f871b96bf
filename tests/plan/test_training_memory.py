"""The trainer's activations, as `specpipe plan` counts them, against what autograd keeps."""

from typing import Any

import numpy as np
import pytest
import torch

from specpipe.schemas.drafters.eagle3 import Eagle3Shape
from specpipe.stages.drafters.eagle3.architecture import ARCHITECTURE
from specpipe.stages.drafters.eagle3.model import Eagle3
from specpipe.stages.samples.batch import DrafterSample, make_batch
from specpipe.stages.storage.shard.states import SampleStates

NUM_TOKENS = 256
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.mark.parametrize(
    ("changes", "num_aux", "num_heads"),
    [
        ({}, 3, 1),
        ({}, 3, 3),
        ({}, 5, 3),
        ({"hidden_size": 128, "intermediate_size": 320, "head_dim": 32}, 3, 5),
        ({"intermediate_size": 640}, 3, 3),
        ({"num_attention_heads": 8}, 3, 3),
        ({"num_layers": 2}, 3, 3),
    ],
)
def test_what_is_kept_for_the_backward_pass(
    changes: dict[str, int], num_aux: int, num_heads: int
) -> None:
    shape = Eagle3Shape(
        **(SHAPE | changes),
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        max_position_embeddings=512,
        vocab_size=64,
        draft_vocab_size=64,
        aux_layers=tuple(range(1, num_aux + 1)),
        norm_before_residual=False,
        norm_before_fc=False,
        fc_norm=False,
        norm_output=False,
    )
    predicted = ARCHITECTURE.activation_numbers(shape, NUM_TOKENS, num_heads)
    assert kept_numbers(shape, num_heads) == pytest.approx(predicted, rel=0.05)


def kept_numbers(shape: Eagle3Shape, num_heads: int) -> int:
    """Floating-point numbers that a forward pass keeps, each storage once, weights left out."""
    model = Eagle3(shape, torch.randn(shape.vocab_size, shape.hidden_size))
    weights = {p.data_ptr() for p in [*model.parameters(), model.embedding.table]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: Any) -> Any:
        if tensor.is_floating_point() and tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(make_batch([one_long_answer(shape)], num_heads))
    return sum(tensor.untyped_storage().nbytes() // 4 for tensor in kept.values())


def one_long_answer(shape: Eagle3Shape) -> DrafterSample:
    num_rows, hidden = NUM_TOKENS - 1, shape.hidden_size
    mask_T = np.ones(NUM_TOKENS, np.uint8)
    mask_T[0] = 0
    states = SampleStates(
        aux_TLH=np.zeros((NUM_TOKENS, shape.num_aux, hidden), np.uint16),
        logz_S=np.zeros(num_rows, np.float32),
        token_logprob_S=np.zeros(num_rows, np.float32),
        argmax_S=np.zeros(num_rows, np.int32),
        final_SH=np.zeros((num_rows, hidden), np.uint16),
    )
    return DrafterSample(np.zeros(NUM_TOKENS, np.int32), mask_T, states)
