"""Drafters that fill a block of mask tokens in one pass: what DFlash and DSpark share."""

from typing import ClassVar, Literal

from pydantic import Field

from specpipe.schemas.drafters.base import DrafterSettings, LayerSettings, LayerShape

USUAL_NUM_AUX = 5
"""Auxiliary layers of the published drafters."""


class BlockSettings(LayerSettings):
    """Settings of a drafter whose blocks begin at the token that the target emitted last."""

    most_draft_tokens: ClassVar[int] = 15
    state_loss: ClassVar[float | None] = 0.0
    num_layers: int = Field(5, ge=1, le=8)
    """Decoder layers, as those of Qwen3; fewer for a target of few layers."""
    causal: bool = False
    """A slot of a block sees the slots before it alone; else all of them."""
    anchors: int = Field(512, gt=0)
    """Most blocks of a sample that a step trains on."""
    mask_token: int | None = Field(None, ge=0)
    """Token id of a draft that is not there yet; default: one that the target never writes."""
    own_lm_head: bool = False
    """Train a lm_head from the target's rows; else it is the target's, frozen."""

    @classmethod
    def default_layers(cls, num_layers: int) -> tuple[int, ...]:
        """Five, uniform between the second and the third-last; spread where that is too few.

        Raises ValueError for a target of one layer.
        """
        if num_layers < 2:
            raise ValueError("a target of one layer has no auxiliary layers: give --layers")
        first, last = (2, num_layers - 2) if num_layers >= 8 else (1, num_layers - 1)
        steps = min(USUAL_NUM_AUX, last - first + 1) - 1
        spread = (first + round(k * (last - first) / max(steps, 1)) for k in range(steps + 1))
        return tuple(sorted(set(spread)))

    @classmethod
    def chosen_layers(cls, stored: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
        try:
            return super().chosen_layers(stored, num_layers)
        except ValueError as error:
            listed = ",".join(map(str, stored))
            raise ValueError(f"{error}, or train on those that it has: --layers {listed}") from None

    def num_heads_problem(self, num_heads: int) -> str | None:
        if self.sliding_window is not None and self.sliding_window <= num_heads:
            return (
                f"sliding_window {self.sliding_window} does not reach beyond a block of"
                f" {num_heads + 1} slots (num_heads {num_heads} and the token before)"
            )
        return DrafterSettings.num_heads_problem(self, num_heads)


class BlockShape(LayerShape):
    """Shape of such a drafter: decoder layers of Qwen3, whose context keys are projected from the
    auxiliary states alone."""

    layer_type: Literal["qwen3"] = "qwen3"
    causal: bool
    block_size: int
    """Slots of a block in training."""
    mask_token: int
    own_lm_head: bool
    """Its lm_head was trained; else it is the target's rows."""
