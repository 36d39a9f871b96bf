"""The interface of engines that run a target: transformers (hf/) and vLLM (vllm/).

Legend: T tokens, S verifier rows, N generated tokens, L aux layers, H hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from specpipe.schemas.records.sample import Ids
from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.storage.shard.states import U16
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.batches import Tokens


@dataclass(frozen=True, slots=True)
class Captured:
    """The target's states over one text, bfloat16."""

    aux_TLH: Tensor
    """The residual stream that enters each auxiliary layer."""
    final_TH: Tensor
    """The last layer's output, before the final norm."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of a turn, with its seed and its limit on new tokens."""

    input_ids: Ids
    seed: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Generation:
    """A turn that the target wrote, with the states of the prompt and of the turn."""

    new_ids: Ids
    """int32 [N], the token that ended the turn included; may be empty."""
    finish: Literal["stop", "length"]
    """Whether the target ended the turn, or the limit on new tokens."""
    states: Captured
    """Over prompt and turn. The last token's states are left out where it never was an input:
    T is the length of both, or one less."""


def bfloat16_bits(states: Tensor) -> U16:
    """bfloat16 values as their bits, in memory of the CPU."""
    bits: U16 = states.contiguous().view(torch.uint16).cpu().numpy()
    return bits


class Backend(Protocol):
    """A loaded target. Results come in the order of what was given, one by one: whoever takes them
    slowly holds the backend back, so that memory is bounded."""

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def device(self) -> torch.device:
        """Where the head is best computed."""

    @property
    def logits_rounding(self) -> float:
        """By how much of itself a logit behind `own_logprobs` may be off; 0 for fp32 logits."""

    def save_head(self, folder: Folder) -> None:
        """Write head.safetensors and head.json into a dump's `target/` folder."""

    def capture(self, samples: Sequence[Tokens]) -> Iterator[Captured]:
        """The states of each sample, over all of its tokens."""

    def generate(self, prompts: Sequence[Prompt], settings: GenerateConfig) -> Iterator[Generation]:
        """Continue each prompt by one turn; the same whatever else is in the batch, but for
        rounding."""

    def own_logprobs(self, sample: Tokens, first: int) -> tuple[Tensor, dict[int, Tensor]]:
        """The target's own word, for proof: nothing of ours is in it.

        Returns fp32 log-probabilities [T - 1 - first] of the tokens at first + 1.., and hidden
        states [T, H] by layer id where the backend has them from elsewhere than its capture.
        """

    def close(self) -> None:
        """Let go of the target's memory and processes."""
