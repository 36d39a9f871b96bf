"""MTP as speculators 0.9 trains it, beside ours: its mask, and the target's state before its norm.

In step k a query sees the step-k keys of all rows at or before its own, at unmoved positions. Only
training differs; evaluations, which run without gradients, are the engine's for all.

Legend: T packed positions, H hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from specpipe.stages.drafters.mtp.model import Mtp
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.samples.batch import Batch

OURS, MASK, PRE_NORM = "ours", "its mask", "its pre-norm input"
VARIANTS: dict[str, tuple[bool, bool]] = {
    OURS: (False, False),
    MASK: (True, False),
    PRE_NORM: (False, True),
    "both": (True, True),
}
"""Whether training has the peer's mask, and its input."""


@contextmanager
def trained_as(variant: str) -> Iterator[None]:
    has_mask, is_pre_norm = VARIANTS[variant]
    forward, states = Mtp.forward, Mtp.states

    def peer_forward(model: Mtp, batch: Batch) -> Tensor:
        is_training = has_mask and torch.is_grad_enabled()
        return (_own_rows if is_training else forward)(model, batch)

    def peer_states(model: Mtp, final_TH: Tensor) -> Tensor:
        if is_pre_norm and torch.is_grad_enabled():
            return final_TH.to(model.proj.weight.dtype)
        return states(model, final_TH)

    with patch.object(Mtp, "forward", peer_forward), patch.object(Mtp, "states", peer_states):
        yield


def _own_rows(model: Mtp, batch: Batch) -> Tensor:
    """Each step's rows see each other alone."""
    layer, last = model.target_layer, batch.num_tokens - 1
    rows_T = torch.arange(batch.num_tokens, device=batch.starts_N.device)
    everywhere = Layout.of_positions(batch.spans)
    fed_TH, outputs = model.states(batch.aux_TLH[:, 0]), []
    angles = layer.angles(batch.positions_T, fed_TH.dtype)
    for k in range(1, batch.num_heads + 1):
        tokens_T = batch.input_ids_T[(rows_T + k).clamp(max=last)]
        inputs_TH = model.inputs(tokens_T, batch.positions_T, fed_TH)
        hidden_TH, _ = layer.first_step(inputs_TH, angles, rows_T, everywhere)
        normed_TH = model.normed(hidden_TH)
        fed_TH = normed_TH if model.family.feeds_normed else hidden_TH
        outputs.append(normed_TH[batch.starts_N])
    return torch.stack(outputs)
