"""The `speculators` format of a P-EAGLE drafter."""

from typing import Any

from specpipe.schemas.drafters.peagle import PeagleShape
from specpipe.stages.drafters.parts.eagle.speculators import EagleSpeculators
from specpipe.stages.drafters.peagle.layout import (
    ALLOWED_SPECULATORS_KEYS,
    SPECULATORS_KEYS,
    SWITCHES,
)


class Speculators(EagleSpeculators[PeagleShape]):
    architecture = "PEagleSpeculator"
    switches = SWITCHES
    required = SPECULATORS_KEYS
    allowed = ALLOWED_SPECULATORS_KEYS

    def further_settings(self, shape: PeagleShape) -> dict[str, Any]:
        return {"mask_token_id": shape.mask_token}
