"""EAGLE-1 written down plainly, to prove exported files with: dense attention, no tricks.

It reads the artifact's two files and the target's embedding, final norm and lm_head, and shares no
code with the drafter that is trained (model.py).

At start i the target has consumed x[0..i] and emitted x[i+1]. Step k takes token x[i+k] and the
output of step k-1 (step 1: the target's normed final state at i) at rope position i+k-1, attends to
all step-1 keys of positions <= i and to its own start's keys of steps 2..k, and predicts x[i+k+1].

Legend: T tokens, P positions with a next token, N starts, K steps, H hidden size, A attention
heads, E head size, V vocabulary.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from specpipe.schemas.records.artifact import EMBEDDING, LM_HEAD, MODEL_TENSORS_FILE
from specpipe.stages.drafters.artifact import read_config
from specpipe.stages.drafters.parts.artifact.final_layer import declared_layers_of_target
from specpipe.stages.drafters.parts.eagle.plain_chain import PlainChain
from specpipe.stages.target.head.target_tensors import TargetTensors
from specpipe.stages.untrusted.tensors import load_tensors


@dataclass(slots=True)
class PlainEagle1(PlainChain):
    final_norm: nn.Module

    @classmethod
    def of(cls, folder: Path, target: TargetTensors) -> Self:
        config, path = read_config(folder), folder / MODEL_TENSORS_FILE
        tensors = {name: t.float() for name, t in load_tensors(path, str(path)).items()}
        tensors[LM_HEAD] = target.lm_head_VH.float()
        ids_V = torch.arange(config["vocab_size"])
        embedding_VH = tensors.pop(EMBEDDING, target.embedding_VH)
        return cls(config, config, tensors, embedding_VH, ids_V, target.final_norm)

    def double(self) -> Self:
        tensors = {name: tensor.double() for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors)

    @property
    def aux_layers(self) -> tuple[int, ...]:
        return declared_layers_of_target(self.config)

    def logits(self, hidden_NH: Tensor, step: int = 1) -> Tensor:
        """[N, V]; every step has the target's head."""
        return self.linear("lm_head", hidden_NH)

    def attention_input(
        self, number: int, tokens_N: Tensor, hidden_NH: Tensor
    ) -> tuple[Tensor, Tensor]:
        if number > 0:
            return self.norm(f"layers.{number}.input_layernorm", hidden_NH), hidden_NH
        embedded_NH = self.embedding_VH[tokens_N].to(self.dtype)
        mixed_NH = self.linear("fc", torch.cat([embedded_NH, hidden_NH], dim=-1))
        return mixed_NH, mixed_NH

    @torch.no_grad()
    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """Outputs [K, N, H] of every step at the starts [begin, end), end < T."""
        final_PH = aux_TLH[:end, -1]
        for weight in self.final_norm.parameters():
            final_PH = final_PH.to(weight.dtype)
        state_PH = self.final_norm(final_PH).to(self.dtype)
        return self.chain(input_ids_T, state_PH, begin, end, num_steps)
