"""The EAGLE-3 drafter (arXiv 2503.01840), unrolled over its draft steps for training.

Parameter names are those of the artifact. The embedding is the target's, frozen, and no parameter;
a drafter of another width than the target's learns a projection of it (`embed_proj`).

Legend: T tokens, N starts, F all auxiliary features, L aux layers, H hidden size, D draft
vocabulary, V vocabulary.
"""

import torch
from torch import Tensor, nn

from specpipe.schemas.drafters.eagle3 import Eagle3Shape
from specpipe.schemas.settings.train import AttentionName
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.drafters.contract import DrafterModel
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.rotary import Rotary
from specpipe.stages.drafters.parts.eagle.chain_layer import ChainLayer
from specpipe.stages.drafters.parts.eagle.first_step import first_step, runner
from specpipe.stages.drafters.parts.embedding import FrozenEmbedding
from specpipe.stages.drafters.parts.norm import RMSNorm
from specpipe.stages.samples.batch import Batch


class Eagle3(DrafterModel):
    """EAGLE-3 over packed batches.

    `embed_tokens_VH` is the target's embedding, as wide as the target. `recompute` keeps only the
    inputs of each layer in each step for the backward pass, and computes the rest again.
    """

    shape: Eagle3Shape

    def __init__(
        self,
        shape: Eagle3Shape,
        embed_tokens_VH: Tensor,
        *,
        attention: AttentionName = "auto",
        recompute: bool = False,
        embedding_on_cpu: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.recompute = shape, recompute
        H, eps = shape.hidden_size, shape.rms_norm_eps
        features = shape.num_aux * shape.target_hidden_size
        if shape.norm_before_fc:
            self.input_norm = RMSNorm(features, eps)
        if shape.fc_norm:
            self.fc_norm = nn.ModuleList(
                RMSNorm(shape.target_hidden_size, eps) for _ in range(shape.num_aux)
            )
        self.fc = nn.Linear(features, H, bias=False)
        if shape.projects_embedding:
            self.embed_proj = nn.Linear(shape.target_hidden_size, H, bias=False)
        self.layers = nn.ModuleList(
            ChainLayer(
                shape,
                is_first=number == 0,
                norm_before_residual=shape.norm_before_residual,
                attention=attention,
            )
            for number in range(shape.num_layers)
        )
        self.norm = RMSNorm(H, eps)
        self.lm_head = nn.Linear(H, shape.draft_vocab_size, bias=False)
        self.rotary = Rotary(shape)
        self.embedding = FrozenEmbedding(embed_tokens_VH, on_cpu=embedding_on_cpu)

    def heads(self) -> Heads:
        return Heads.shared(self.lm_head.weight)

    def features(self, aux_TLH: Tensor) -> Tensor:
        """h0 [T, H] from the auxiliary states."""
        aux_TLH = aux_TLH.to(self.fc.weight.dtype)
        if self.shape.fc_norm:
            aux_TLH = torch.stack(
                [norm(aux_TLH[:, i]) for i, norm in enumerate(self.fc_norm)], dim=1
            )
        features_TF = aux_TLH.flatten(1)
        if self.shape.norm_before_fc:
            features_TF = self.input_norm(features_TF)
        out: Tensor = self.fc(features_TF)
        return out

    def embed(self, ids_T: Tensor) -> Tensor:
        """[T, H]"""
        embedded_T: Tensor = self.embedding(ids_T).to(self.fc.weight.dtype)
        return self.embed_proj(embedded_T) if self.shape.projects_embedding else embedded_T

    def forward(self, batch: Batch) -> Tensor:
        """Input of the lm_head for every head and start: norm(o), [K, N, H].

        Head k is computed at every start, also where `batch.rows_KN` says that it is not used.
        """
        starts_N, last = batch.starts_N, batch.num_tokens - 1
        positions_N = batch.positions_T[starts_N]
        layout = Layout.of_starts(batch.spans)
        run = runner(recompute=self.recompute)
        embedded_TH = self.embed(batch.input_ids_T)
        shared = [layer.project_tokens(embedded_TH) for layer in self._layers]
        h0_TH = self.features(batch.aux_TLH)
        hidden_NH, step_1 = first_step(batch, h0_TH, self._layers, shared, self.rotary, run)
        outputs = [self.norm(hidden_NH)]
        seen = [[keys] for keys in step_1]
        for k in range(2, batch.num_heads + 1):
            hidden_NH = outputs[-1] if self.shape.norm_output else hidden_NH
            tokens_N = (starts_N + k).clamp(max=last)
            cos_sin = self.rotary(positions_N + k - 1, hidden_NH.dtype)
            for layer, projections, keys in zip(self._layers, shared, seen, strict=True):
                hidden_NH, own = run(
                    layer.next_step,
                    hidden_NH,
                    tokens_N,
                    projections,
                    cos_sin,
                    tuple(keys),
                    layout,
                )
                keys.append(own)
            outputs.append(self.norm(hidden_NH))
        return torch.stack(outputs)

    @property
    def _layers(self) -> list[ChainLayer]:
        return [layer for layer in self.layers if isinstance(layer, ChainLayer)]
