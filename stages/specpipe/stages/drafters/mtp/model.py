"""The MTP layer, unrolled over its draft steps with the engine's mask and positions.

The embedding, the final norm and the lm_head are the target's, frozen, and no parameters.

Legend: T packed positions, N starts, X rows of either kind, H hidden size, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from specpipe.schemas.drafters.mtp import MtpShape
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.drafters.contract import DrafterModel, Runtime
from specpipe.stages.drafters.mtp.target_layer import (
    KeyValue,
    TargetLayer,
    layer_config,
    rms_norm,
)
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.embedding import FrozenEmbedding
from specpipe.stages.samples.batch import Batch
from specpipe.stages.target.head.target_tensors import TargetTensors

Stepped = tuple[Tensor, KeyValue]

_SPREAD = 0.02
"""Standard deviation of a fresh layer's matrices, where the target's config says none."""


class Mtp(DrafterModel):
    shape: MtpShape
    lm_head_VH: Tensor
    final_norm_H: Tensor

    def __init__(self, shape: MtpShape, target: TargetTensors, runtime: Runtime) -> None:
        super().__init__()
        self.shape, self.recompute = shape, runtime.recompute
        self.family = shape.of
        assert self.family.modules is not None
        config = layer_config(shape)
        H, eps, adds_one = shape.width, config.rms_norm_eps, self.family.norm_adds_one
        self.embed_norm = rms_norm(H, eps, adds_one=adds_one)
        self.hidden_norm = rms_norm(H, eps, adds_one=adds_one)
        self.proj = nn.Linear(2 * H, H, bias=False)
        self.target_layer = TargetLayer(shape, runtime.attention)
        if "norm" in self.family.modules:
            self.norm = rms_norm(H, eps, adds_one=adds_one)
        self.eps = eps
        self.embedding = FrozenEmbedding(target.embedding_VH, on_cpu=runtime.embedding_on_cpu)
        self.register_buffer("lm_head_VH", target.lm_head_VH, persistent=False)
        self.register_buffer("final_norm_H", target.final_norm_H, persistent=False)
        spread = getattr(config, "initializer_range", None) or _SPREAD
        for parameter in self.target_layer.parameters():
            if parameter.ndim >= 2:  # transformers leaves some without any value
                nn.init.normal_(parameter, std=spread)

    def heads(self) -> Heads:
        return Heads.shared(self.lm_head_VH)

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 2 and not name.endswith("mlp.gate.weight")

    def forward(self, batch: Batch) -> Tensor:
        starts_N, last = batch.starts_N, batch.num_tokens - 1
        positions_N = batch.positions_T[starts_N]
        layout = Layout.of_starts(batch.spans)
        layer = self.target_layer
        # Position i holds token x[i+1]; what the last one of a sample holds is never seen.
        next_T = torch.arange(1, batch.num_tokens + 1, device=starts_N.device) % batch.num_tokens
        inputs_TH = self.inputs(
            batch.input_ids_T[next_T], batch.positions_T, self.states(batch.aux_TLH[:, 0])
        )
        hidden_NH, step_1 = self._run(
            layer.first_step,
            inputs_TH,
            layer.angles(batch.positions_T, inputs_TH.dtype),
            starts_N,
            layout,
        )
        outputs, chain = [self.normed(hidden_NH)], list[KeyValue]()
        for k in range(2, batch.num_heads + 1):
            fed_NH = outputs[-1] if self.family.feeds_normed else hidden_NH
            tokens_N = batch.input_ids_T[(starts_N + k).clamp(max=last)]
            hidden_NH, own = self._run(
                layer.next_step,
                self.inputs(tokens_N, positions_N + k - 1, fed_NH),
                layer.angles(positions_N + k - 1, fed_NH.dtype),
                starts_N,
                layout,
                step_1,
                tuple(chain),
            )
            chain.append(own)
            outputs.append(self.normed(hidden_NH))
        return torch.stack(outputs)

    def states(self, final_TH: Tensor) -> Tensor:
        """What the first step takes of the target's last state."""
        final_TH = final_TH.to(self.proj.weight.dtype)
        if not self.family.takes_normed:
            return final_TH
        scale_T1 = torch.rsqrt(final_TH.square().mean(-1, keepdim=True) + self.eps)
        return final_TH * scale_T1 * self.final_norm_H

    def inputs(self, tokens_X: Tensor, positions_X: Tensor, states_XH: Tensor) -> Tensor:
        """What the layer takes [X, H]: a token and a state for each row."""
        embedded_XH = self.embedding(tokens_X).to(self.proj.weight.dtype)
        if self.family.zeroes_first:
            embedded_XH = embedded_XH.masked_fill(positions_X[:, None] == 0, 0)
        halves = [self.embed_norm(embedded_XH), self.hidden_norm(states_XH)]
        if self.family.hidden_first:
            halves.reverse()
        out: Tensor = self.proj(torch.cat(halves, dim=-1))
        return out

    def normed(self, hidden_NH: Tensor) -> Tensor:
        """What the lm_head takes."""
        return self.norm(hidden_NH) if hasattr(self, "norm") else hidden_NH

    def _run(self, step: Callable[..., Stepped], *inputs: object) -> Stepped:
        if not (self.recompute and torch.is_grad_enabled()):
            return step(*inputs)
        # Nothing in a step is random.
        out: Stepped = checkpoint(step, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out
