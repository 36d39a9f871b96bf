"""What drafters of blocks compute but for their heads: the outputs of every slot of every start.

A start i has a block of its own: slot 0 holds the token x[i+1] that the target emitted last, the
others the mask token; slot b stands at position i+1+b. Parameter names are those of the artifact;
the embedding is the target's, frozen, and no parameter.

Legend: T tokens, N starts, B slots, R rows (start, slot), L aux layers, H hidden size, D draft
vocabulary, V vocabulary.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from specpipe.schemas.drafters.block import BlockShape
from specpipe.stages.drafters.contract import DrafterModel, Runtime
from specpipe.stages.drafters.parts.attention.block import BlockRule
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.rotary import Rotary
from specpipe.stages.drafters.parts.attention.self_attention import KeyValue
from specpipe.stages.drafters.parts.block.layer import BlockLayer
from specpipe.stages.drafters.parts.embedding import FrozenEmbedding
from specpipe.stages.drafters.parts.norm import RMSNorm
from specpipe.stages.samples.batch import Batch, SpanOfStarts

ROWS = 2**13
"""Most rows that are computed at a time where no gradient is wanted: an evaluation has a block at
every start."""


class BlockDrafter(DrafterModel):
    """`head_DH` are the target's rows, which it keeps frozen unless its shape has an own head."""

    shape: BlockShape
    head_DH: Tensor

    def __init__(
        self, shape: BlockShape, embed_tokens_VH: Tensor, head_DH: Tensor, runtime: Runtime
    ) -> None:
        super().__init__()
        self.shape, self.runtime = shape, runtime
        H, eps = shape.hidden_size, shape.rms_norm_eps
        self.fc = nn.Linear(shape.num_aux * shape.target_hidden_size, H, bias=False)
        self.hidden_norm = RMSNorm(H, eps)
        self.layers = nn.ModuleList(BlockLayer(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(H, eps)
        self.rotary = Rotary(shape)
        self.embedding = FrozenEmbedding(embed_tokens_VH, on_cpu=runtime.embedding_on_cpu)
        if shape.own_lm_head:
            self.lm_head = nn.Linear(H, shape.draft_vocab_size, bias=False)
        else:
            self.register_buffer("head_DH", head_DH, persistent=False)

    @property
    def head(self) -> Tensor:
        """[D, H]"""
        if self.shape.own_lm_head:
            return self.lm_head.weight
        if self.head_DH.is_cpu and self.head_DH.dtype == torch.bfloat16:
            # Once, and not by each call of the loss.
            self.head_DH = self.head_DH.float()
        return self.head_DH

    def context(self, batch: Batch) -> list[KeyValue]:
        """Keys and values of every layer at every position."""
        dtype = self.fc.weight.dtype
        context_TH = self.hidden_norm(self.fc(batch.aux_TLH.flatten(1).to(dtype)))
        cos_sin_T = self.rotary(batch.positions_T, dtype)
        return [layer.context(context_TH, cos_sin_T) for layer in self._layers]

    def slots(self, batch: Batch, num_slots: int) -> Tensor:
        """Normed outputs of the last layer: [N, B, H]."""
        context = self.context(batch)
        if torch.is_grad_enabled():
            whole = slice(0, len(batch.starts_N))
            return self._blocks(batch, context, whole, Layout.of_starts(batch.spans), num_slots)
        parts = [
            self._blocks(batch, context, rows, layout, num_slots)
            for rows, layout in _parts(batch.spans, max(1, ROWS // num_slots))
        ]
        empty = self.norm.weight.new_zeros(0, num_slots, self.shape.hidden_size)
        return torch.cat([empty, *parts])

    def _blocks(
        self,
        batch: Batch,
        context: list[KeyValue],
        starts: slice,
        layout: Layout,
        num_slots: int,
    ) -> Tensor:
        starts_N1 = batch.starts_N[starts].unsqueeze(1)
        slots_B = torch.arange(num_slots, device=starts_N1.device)
        ids_NB = torch.full_like(starts_N1, self.shape.mask_token).repeat(1, num_slots)
        ids_NB[:, :1] = batch.input_ids_T[starts_N1 + 1]
        dtype = self.fc.weight.dtype
        hidden_RH = self.embedding(ids_NB.flatten()).to(dtype)
        positions_NB = batch.positions_T[starts_N1] + 1 + slots_B
        cos_sin_R = self.rotary(positions_NB.flatten(), dtype)
        shape = self.shape
        rule = BlockRule(
            shape.causal, shape.sliding_window, offset=1, attention=self.runtime.attention
        )
        for layer, keys in zip(self._layers, context, strict=True):
            given = hidden_RH, cos_sin_R, keys, layout, rule, num_slots
            if self.runtime.recompute and torch.is_grad_enabled():
                # Nothing in a layer is random.
                hidden_RH = checkpoint(layer, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden_RH = layer(*given)
        out: Tensor = self.norm(hidden_RH).unflatten(0, (-1, num_slots))
        return out

    @property
    def _layers(self) -> list[BlockLayer]:
        return [layer for layer in self.layers if isinstance(layer, BlockLayer)]


def _parts(spans: tuple[SpanOfStarts, ...], most: int) -> Iterator[tuple[slice, Layout]]:
    """Up to `most` starts at a time: their rows, and their layout."""
    if not spans:
        return
    starts_N = np.concatenate([np.arange(span.begin, span.end) for span in spans])
    samples_N = np.repeat([span.sample for span in spans], [span.num_starts for span in spans])
    for begin in range(0, len(starts_N), most):
        rows = slice(begin, min(begin + most, len(starts_N)))
        yield rows, Layout.of_chosen(starts_N[rows].tolist(), samples_N[rows].tolist())
