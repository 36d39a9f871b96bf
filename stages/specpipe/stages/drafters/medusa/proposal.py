"""Medusa written down plainly, to prove exported files with.

It reads the artifact's two files and the target's final norm, and shares no code with the drafter
that is trained (model.py). At start i, where the target has consumed x[0..i] and emitted x[i+1],
head k takes the target's final state at i after the final norm, and predicts x[i+1+k].

Legend: T tokens, L aux layers, R starts, K heads, H hidden size, V vocabulary.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specpipe.schemas.records.artifact import MODEL_TENSORS_FILE
from specpipe.stages.drafters.artifact import read_config
from specpipe.stages.drafters.parts.artifact.final_layer import declared_layers_of_target
from specpipe.stages.untrusted.tensors import load_tensors


@dataclass(frozen=True, slots=True)
class PlainMedusa:
    """float32 unless asked for otherwise; the final norm is in the target's dtype always."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    final_norm: nn.Module

    @classmethod
    def load(cls, folder: Path, final_norm: nn.Module) -> "PlainMedusa":
        config = read_config(folder)
        path = folder / MODEL_TENSORS_FILE
        tensors = {name: t.float() for name, t in load_tensors(path, str(path)).items()}
        return cls(config, tensors, final_norm)

    def double(self) -> "PlainMedusa":
        return replace(self, tensors={name: t.double() for name, t in self.tensors.items()})

    @property
    def aux_layers(self) -> tuple[int, ...]:
        return declared_layers_of_target(self.config)

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def target_ids_D(self) -> Tensor:
        return torch.arange(self.vocab_size)

    @torch.no_grad()
    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """Outputs [K, R, H] of every head at the starts [begin, end)."""
        final_RH = aux_TLH[begin:end, -1]
        for weight in self.final_norm.parameters():
            final_RH = final_RH.to(weight.dtype)
        normed_RH = self.final_norm(final_RH).to(self.tensors["blocks.0.layers.0.weight"].dtype)
        return torch.stack([self._block(head, normed_RH) for head in range(num_steps)])

    def _block(self, head: int, hidden_RH: Tensor) -> Tensor:
        for layer in range(self.config["num_hidden_layers"]):
            name = f"blocks.{head}.layers.{layer}"
            linear_RH = hidden_RH @ self.tensors[f"{name}.weight"].T
            if self.config["medusa_fc_bias"]:
                linear_RH = linear_RH + self.tensors[f"{name}.bias"]
            hidden_RH = hidden_RH + linear_RH * torch.sigmoid(linear_RH)
        return hidden_RH

    def logits(self, hidden_RH: Tensor, step: int) -> Tensor:
        """[R, V] of head `step`, from 1."""
        shared = self.config["original_lm_head"]
        head = "lm_head" if shared else f"lm_heads.{step - 1}"
        return hidden_RH @ self.tensors[f"{head}.weight"].T
