"""MTP: the target's own layer for multi-token prediction, trained further, or a new one."""

from typing import Any, ClassVar, Literal

from specpipe.schemas.drafters.base import DrafterSettings, DrafterShape
from specpipe.schemas.drafters.mtp_families import FAMILIES, MtpFamily, text_settings


class MtpSettings(DrafterSettings):
    has_draft_vocab: ClassVar[bool] = False

    kind: Literal["mtp"] = "mtp"
    fresh_layer: bool = False
    """Begin with a new layer, also where the target has one of its own."""

    @property
    def begins_trained(self) -> bool:
        return not self.fresh_layer

    @classmethod
    def default_layers(cls, num_layers: int) -> tuple[int, ...]:
        """The last layer's output, before the final norm."""
        return (num_layers,)


class MtpShape(DrafterShape):
    """Its layer is of the target's kind: the target's config describes it."""

    architecture: Literal["mtp"] = "mtp"
    family: str
    target_config: dict[str, Any]
    """The target's config.json, with one MTP layer."""

    @property
    def of(self) -> MtpFamily:
        return FAMILIES[self.family]

    @property
    def num_target_layers(self) -> int:
        return int(text_settings(self.target_config)["num_hidden_layers"])

    def summary(self) -> str:
        return f"mtp, one layer of {self.family}"
