"""EAGLE-1 (arXiv 2401.15077): a chain drafter on the target's final state.

EAGLE-2 and HASS have the same weights.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from specpipe.schemas.drafters.base import LayerSettings, LayerShape


class Eagle1Settings(LayerSettings):
    takes_any_layers: ClassVar[bool] = False
    has_draft_vocab: ClassVar[bool] = False

    kind: Literal["eagle1"] = "eagle1"
    num_layers: int = Field(1, ge=1, le=8)
    """Decoder layers; the first has no norm before its attention."""
    feature_regression: float = Field(0.0, ge=0)
    """Weight of a further loss, smooth L1 of what is fed back to the target's next final state;
    published: 1."""

    @classmethod
    def default_layers(cls, num_layers: int) -> tuple[int, ...]:
        """The last layer's output, before the final norm."""
        return (num_layers,)

    @model_validator(mode="after")
    def _without_a_window(self) -> "Eagle1Settings":
        if self.sliding_window is not None:
            raise ValueError("sliding_window: engines give EAGLE-1 none")
        return self


class Eagle1Shape(LayerShape):
    """Everything that is needed to build an EAGLE-1 drafter; it is as wide as the target."""

    architecture: Literal["eagle1"] = "eagle1"
