"""The EAGLE-1 drafter, unrolled over its draft steps for training.

Row j stands at position j, holds token x[j+1] and the target's final state of position j after the
final norm; a later step holds what the step before it put out. Parameter names are those of the
artifact. Embedding, final norm and lm_head are the target's, frozen, and no parameters.

Legend: K steps, T tokens, N starts, H hidden size, V vocabulary.
"""

import torch
from torch import Tensor, nn

from specpipe.schemas.drafters.eagle1 import Eagle1Settings, Eagle1Shape
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.drafters.contract import DrafterModel, Runtime
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.attention.rotary import Rotary
from specpipe.stages.drafters.parts.eagle.chain_layer import ChainLayer
from specpipe.stages.drafters.parts.eagle.first_step import first_step, runner
from specpipe.stages.drafters.parts.embedding import FrozenEmbedding
from specpipe.stages.drafters.parts.final_norm import FinalNorm
from specpipe.stages.samples.batch import Batch
from specpipe.stages.target.head.target_tensors import TargetTensors


class Eagle1(DrafterModel):
    shape: Eagle1Shape
    lm_head_VH: Tensor

    def __init__(self, shape: Eagle1Shape, target: TargetTensors, runtime: Runtime) -> None:
        super().__init__()
        self.shape, self.recompute = shape, runtime.recompute
        H, settings = shape.hidden_size, runtime.settings
        self.regression = (
            settings.feature_regression if isinstance(settings, Eagle1Settings) else 0.0
        )
        self.fc = nn.Linear(2 * H, H, bias=False)
        self.layers = nn.ModuleList(
            ChainLayer(
                shape, is_first=False, norm_before_residual=False, attention=runtime.attention
            )
            for _ in range(shape.num_layers)
        )
        self.layers[0].input_layernorm = nn.Identity()
        self.rotary = Rotary(shape)
        self.final_norm = FinalNorm(target.final_norm)
        self.embedding = FrozenEmbedding(target.embedding_VH, on_cpu=runtime.embedding_on_cpu)
        self.register_buffer("lm_head_VH", target.lm_head_VH, persistent=False)

    def heads(self) -> Heads:
        return Heads.shared(self.lm_head_VH)

    def states(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """The target's final states after the final norm, at all positions or at some."""
        final = batch.aux_TLH[:, -1] if rows is None else batch.aux_TLH[rows, -1]
        states: Tensor = self.final_norm(final).to(self.fc.weight.dtype)
        return states

    def forward(self, batch: Batch) -> Tensor:
        starts_N, last = batch.starts_N, batch.num_tokens - 1
        positions_N = batch.positions_T[starts_N]
        layout = Layout.of_starts(batch.spans)
        run = runner(recompute=self.recompute)
        layers = [layer for layer in self.layers if isinstance(layer, ChainLayer)]
        of_token, of_state = self.fc.weight.split(self.shape.hidden_size, dim=1)
        embedded_TH = self.embedding(batch.input_ids_T).to(self.fc.weight.dtype)
        # A token's part is the same in every step.
        tokens_TH = nn.functional.linear(embedded_TH, of_token)
        inputs_TH = tokens_TH.roll(-1, 0) + nn.functional.linear(self.states(batch), of_state)
        shared = [layer.project_tokens(inputs_TH) for layer in layers]
        hidden_NH, step_1 = first_step(batch, inputs_TH, layers, shared, self.rotary, run)
        outputs = [hidden_NH]
        seen = [[keys] for keys in step_1]
        for k in range(2, batch.num_heads + 1):
            rows_N = (starts_N + k).clamp(max=last)
            hidden_NH = tokens_TH[rows_N] + nn.functional.linear(outputs[-1], of_state)
            cos_sin = self.rotary(positions_N + k - 1, hidden_NH.dtype)
            for layer, projections, keys in zip(layers, shared, seen, strict=True):
                hidden_NH, own = run(
                    layer.next_step,
                    hidden_NH,
                    rows_N,
                    projections,
                    cos_sin,
                    tuple(keys),
                    layout,
                )
                keys.append(own)
            outputs.append(hidden_NH)
        return torch.stack(outputs)

    def extra_loss(
        self, batch: Batch, outputs_KNX: Tensor, measures_MKN: Tensor, of: Denominators
    ) -> Tensor | None:
        """The published regression: step k's output at start i to the state of position i+k."""
        if self.regression == 0:
            return None
        last, total = batch.num_tokens - 1, outputs_KNX.new_zeros(())
        for k, output_NH in enumerate(outputs_KNX, start=1):
            next_NH = self.states(batch, (batch.starts_N + k).clamp(max=last))
            apart_NH = nn.functional.smooth_l1_loss(
                output_NH, next_NH.to(output_NH.dtype), reduction="none"
            )
            weights_N = (batch.rows_KN[k - 1] >= 0) * batch.weights_N
            count = of.starts_K[k - 1].clamp(min=1).to(output_NH.dtype)
            total = total + (apart_NH.mean(-1) * weights_N).sum() / count
        return self.regression * total
