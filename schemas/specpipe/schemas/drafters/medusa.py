"""Medusa (arXiv 2401.10774): a head for each draft token, on the target's final state alone."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from specpipe.schemas.drafters.base import DrafterSettings, DrafterShape


class MedusaSettings(DrafterSettings):
    takes_any_layers: ClassVar[bool] = False
    reads_starts_alone: ClassVar[bool] = True
    samples_drafts: ClassVar[bool] = False
    has_draft_vocab: ClassVar[bool] = False
    own_recipe: ClassVar[Mapping[str, Any]] = {"eta": 10.0}

    kind: Literal["medusa"] = "medusa"
    num_layers: int = Field(1, ge=1, le=8)
    """Residual blocks of each head."""
    block_bias: bool = False
    """A bias in each residual block."""
    own_lm_head: bool = False
    """Train a lm_head for each head, which begins as the target's and is as large, instead of
    taking the target's for all."""

    @classmethod
    def default_layers(cls, num_layers: int) -> tuple[int, ...]:
        """The last layer's output, before the final norm."""
        return (num_layers,)


class MedusaShape(DrafterShape):
    architecture: Literal["medusa"] = "medusa"
    num_heads: int = Field(ge=1, le=64)
    num_layers: int = Field(ge=1, le=64)
    block_bias: bool
    own_lm_head: bool

    def num_heads_problem(self, num_heads: int) -> str | None:
        if num_heads == self.num_heads:
            return None
        return f"num_heads {num_heads}: it has {self.num_heads}, one for each draft token"

    def draft_tokens_problem(self, number: int) -> str | None:
        if number <= self.num_heads:
            return None
        return f"speculative_tokens {number}: it has {self.num_heads} heads, one for each"

    def summary(self) -> str:
        return f"medusa, {self.num_heads} heads of {self.num_layers} residual block(s)"
