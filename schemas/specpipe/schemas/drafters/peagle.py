"""P-EAGLE (arXiv 2602.01469): EAGLE-3's layers, which draft all tokens in one pass."""

from typing import ClassVar, Literal

from pydantic import Field

from specpipe.schemas.drafters.base import EagleSettings, LayerShape, LayerType


class PeagleSettings(EagleSettings):
    most_draft_tokens: ClassVar[int] = 15
    of_training: ClassVar[frozenset[str]] = frozenset({"anchors", "depth_ratio", "depth_floor"})
    kind: Literal["peagle"] = "peagle"
    layer_type: LayerType = "llama"
    """qwen3: queries and keys are normed per head."""
    num_layers: int = Field(1, ge=1, le=4)
    """Decoder layers; the first takes [embedding; hidden], further ones the hidden state alone."""
    norm_before_residual: bool = True
    """Add the residual after the hidden norm instead of before it."""
    norm_before_fc: bool = True
    """RMSNorm on the concatenated auxiliary states."""
    mask_token: int | None = Field(None, ge=0)
    """Token id of a draft that is not there yet; default: one that the target never writes."""
    anchors: int = Field(512, gt=0)
    """Most starts of a sample whose later draft tokens a step trains on."""
    depth_ratio: float = Field(0.7, gt=0, le=1)
    """Share of the anchors of a draft token that a step trains the next one at."""
    depth_floor: float = Field(0.2, ge=0, le=1)
    """Share of the anchors that a step trains every draft token at."""

    def search_choices(self) -> list[dict[str, bool]]:
        return [
            {"norm_before_residual": residual, "norm_before_fc": features}
            for residual, features in ((True, True), (True, False), (False, True), (False, False))
        ]


class PeagleShape(LayerShape):
    """Everything that is needed to build a P-EAGLE drafter, and what its artifact declares.

    It is as wide as the target.
    """

    architecture: Literal["peagle"] = "peagle"
    norm_before_residual: bool
    norm_before_fc: bool
    mask_token: int
