"""The pass over the rows of the text, which drafters of `EagleLayer`s begin with.

Row i stands at position i, holds token x[i+1] and the states of position i, and predicts x[i+2].

Legend: T packed positions, N starts, H hidden size.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.rotary import Rotary
from specpipe.stages.drafters.parts.attention.self_attention import KeyValue, Projections
from specpipe.stages.drafters.parts.eagle.layer import EagleLayer
from specpipe.stages.samples.batch import Batch

Run = Callable[..., Any]
"""Calls a step of a layer with its inputs."""


def first_step(
    batch: Batch,
    hidden_TH: Tensor,
    layers: Sequence[EagleLayer],
    shared: Sequence[Projections],
    rotary: Rotary,
    run: Run,
) -> tuple[Tensor, list[KeyValue]]:
    """Output [N, H] at the starts, and the keys and values of every layer at every position.

    The keys of a layer come from the outputs of the one before it: only the last may leave out
    the positions that are no starts. What the last position of a sample holds is never seen, as no
    start reaches that far.
    """
    hidden, device = hidden_TH, hidden_TH.device
    tokens_T = torch.arange(1, batch.num_tokens + 1, device=device) % batch.num_tokens
    cos_sin_T = rotary(batch.positions_T, hidden.dtype)
    at_starts, everywhere = Layout.of_starts(batch.spans), Layout.of_positions(batch.spans)
    last = len(layers) - 1
    step_1: list[KeyValue] = []
    for number, layer in enumerate(layers):
        rows, seen = (batch.starts_N, at_starts) if number == last else (None, everywhere)
        hidden, keys = run(
            layer.first_step, hidden, tokens_T, shared[number], cos_sin_T, rows, seen
        )
        step_1.append(keys)
    return hidden, step_1


def runner(*, recompute: bool) -> Run:
    """One that calls; with `recompute`, one that keeps a step's inputs alone for the backward pass
    and computes the rest again."""
    if not (recompute and torch.is_grad_enabled()):
        return lambda step, *inputs: step(*inputs)
    # Nothing in a step is random.
    return partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
