"""The target's own tensors that drafters take, read once.

Legend: V vocabulary, H hidden size.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from specpipe.stages.target.head.verifier_head import (
    Read,
    final_norm,
    final_scale,
    load_embedding,
    load_final_norm,
    load_lm_head,
    load_stored_config,
)


class TargetTensors(Protocol):
    """Tensors of the target that a drafter is built from."""

    @property
    def embedding_VH(self) -> Tensor:
        """In the dtype in which it is stored, as `lm_head_VH`."""

    @property
    def lm_head_VH(self) -> Tensor: ...

    @property
    def final_norm_H(self) -> Tensor:
        """The weight of the final norm as it acts, in float32."""

    @property
    def final_norm(self) -> nn.Module:
        """As the target's architecture computes it, in the target's dtype."""


class StoredTarget:
    """The target's tensors in a dump's `target/` folder, read by a function for its files."""

    def __init__(self, read: Read) -> None:
        self.read = read

    @cached_property
    def config(self) -> PreTrainedConfig:
        return load_stored_config(self.read)

    @cached_property
    def embedding_VH(self) -> Tensor:
        return load_embedding(self.read)

    @cached_property
    def lm_head_VH(self) -> Tensor:
        return load_lm_head(self.read)

    @cached_property
    def final_norm(self) -> nn.Module:
        return load_final_norm(self.read)

    @cached_property
    def final_norm_H(self) -> Tensor:
        """As it acts."""
        return final_norm(self.read)

    @cached_property
    def final_scale_H(self) -> Tensor:
        """See `final_scale`."""
        return final_scale(self.read)


@dataclass(frozen=True, slots=True)
class WithEmbedding:
    """The target's tensors but for the embedding, which is a drafter's own."""

    of: TargetTensors
    embedding_VH: Tensor

    @property
    def lm_head_VH(self) -> Tensor:
        return self.of.lm_head_VH

    @property
    def final_norm_H(self) -> Tensor:
        return self.of.final_norm_H

    @property
    def final_norm(self) -> nn.Module:
        return self.of.final_norm


@dataclass(frozen=True, slots=True)
class NoTensors:
    """Tensors without contents, to count a drafter's parameters by."""

    vocab_size: int
    hidden_size: int

    @property
    def embedding_VH(self) -> Tensor:
        return torch.empty(self.vocab_size, self.hidden_size, device="meta")

    @property
    def lm_head_VH(self) -> Tensor:
        return self.embedding_VH

    @property
    def final_norm_H(self) -> Tensor:
        return torch.empty(self.hidden_size, device="meta")

    @property
    def final_norm(self) -> nn.Module:
        return nn.Identity()
