"""The P-EAGLE drafter (arXiv 2602.01469): the rows of the text as in EAGLE-3's first step, and
masked rows behind each start, all in one pass.

A masked row holds the mask token and, in place of auxiliary states, `mask_hidden`. Both are
trained; every other row of the embedding is the target's, frozen. Where a text holds the mask
token, as a prompt may, its trained row is taken, and gets no gradient from there: it is a row of
text that drafts are not made of.

Legend: T tokens, N starts, K heads, F all auxiliary features, L aux layers, H hidden size,
R masked rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specpipe.schemas.drafters.peagle import PeagleShape
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.drafters.contract import DrafterModel, Runtime
from specpipe.stages.drafters.parts.attention.rotary import Rotary
from specpipe.stages.drafters.parts.attention.self_attention import KeyValue
from specpipe.stages.drafters.parts.eagle.first_step import Run, first_step, runner
from specpipe.stages.drafters.parts.embedding import FrozenEmbedding
from specpipe.stages.drafters.parts.norm import RMSNorm
from specpipe.stages.drafters.peagle.layer import Layer
from specpipe.stages.drafters.peagle.rows import MaskedRows, masked_rows
from specpipe.stages.samples.batch import Batch

MOST_ROWS = 2**14
"""Masked rows at a time where nothing is kept for a backward pass: an evaluation has all of them,
at every start."""


class Peagle(DrafterModel):
    """P-EAGLE over packed batches. `embed_tokens_VH` is the target's embedding."""

    shape: PeagleShape

    def __init__(
        self, shape: PeagleShape, embed_tokens_VH: Tensor, runtime: Runtime | None = None
    ) -> None:
        super().__init__()
        runtime = runtime or Runtime()
        self.shape, self.recompute = shape, runtime.recompute
        H, eps, features = shape.hidden_size, shape.rms_norm_eps, shape.num_aux * shape.hidden_size
        if shape.norm_before_fc:
            self.input_norm = RMSNorm(features, eps)
        self.fc = nn.Linear(features, H, bias=False)
        self.mask_hidden = nn.Parameter(torch.randn(1, 1, features))
        self.mask_embedding = nn.Parameter(torch.ones(H))
        self.layers = nn.ModuleList(
            Layer(
                shape,
                is_first=number == 0,
                norm_before_residual=shape.norm_before_residual,
                attention=runtime.attention,
            )
            for number in range(shape.num_layers)
        )
        self.norm = RMSNorm(H, eps)
        self.lm_head = nn.Linear(H, shape.draft_vocab_size, bias=False)
        self.rotary = Rotary(shape)
        self.embedding = FrozenEmbedding(embed_tokens_VH, on_cpu=runtime.embedding_on_cpu)

    def heads(self) -> Heads:
        return Heads.shared(self.lm_head.weight)

    def features(self, features_TF: Tensor) -> Tensor:
        """[T, H] from the concatenated auxiliary states."""
        features_TF = features_TF.to(self.fc.weight.dtype)
        if self.shape.norm_before_fc:
            features_TF = self.input_norm(features_TF)
        out: Tensor = self.fc(features_TF)
        return out

    def embed(self, ids_T: Tensor) -> Tensor:
        """[T, H]"""
        embedded_TH: Tensor = self.embedding(ids_T).to(self.fc.weight.dtype)
        is_mask_T = ids_T == self.shape.mask_token
        return torch.where(is_mask_T[:, None], self.mask_embedding.detach(), embedded_TH)

    def forward(self, batch: Batch) -> Tensor:
        """Input of the lm_head for every head and start, [K, N, H]; 0 where `batch.rows_KN` says
        that a head beyond the first is not used."""
        run, layers = runner(recompute=self.recompute), self._layers
        embedded_TH = self.embed(batch.input_ids_T)
        shared = [layer.project_tokens(embedded_TH) for layer in layers]
        h0_TH = self.features(batch.aux_TLH.flatten(1))
        hidden_NH, of_text = first_step(batch, h0_TH, layers, shared, self.rotary, run)
        num_starts, device = len(hidden_NH), hidden_NH.device
        places, outputs = [torch.arange(num_starts)], [self.norm(hidden_NH)]
        for rows in masked_rows(batch, None if torch.is_grad_enabled() else MOST_ROWS):
            outputs.append(self.norm(self._masked(batch, rows, of_text, run)))
            places.append(rows.depths_R * num_starts + rows.starts_R)
        size = batch.num_heads, num_starts, self.shape.hidden_size
        none_KNH = outputs[0].new_zeros(size).flatten(0, 1)
        every: Tensor = none_KNH.index_copy(0, torch.cat(places).to(device), torch.cat(outputs))
        return every.view(size)

    def _masked(
        self, batch: Batch, rows: MaskedRows, of_text: Sequence[KeyValue], run: Run
    ) -> Tensor:
        """Output [R, H] of the masked rows."""
        device = batch.starts_N.device
        starts_R, depths_R = rows.starts_R.to(device), rows.depths_R.to(device)
        hidden = self.features(self.mask_hidden.flatten(1))
        positions_R = batch.positions_T[batch.starts_N[starts_R]] + depths_R
        cos_sin_R = self.rotary(positions_R, hidden.dtype)
        for layer, keys_values in zip(self._layers, of_text, strict=True):
            of_mask = layer.project_tokens(self.mask_embedding[None])
            hidden = run(layer.masked_step, hidden, of_mask, cos_sin_R, keys_values, rows)
        return hidden

    @property
    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]
