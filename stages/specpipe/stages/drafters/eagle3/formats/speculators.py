"""The `speculators` format of an EAGLE-3 drafter."""

from specpipe.schemas.drafters.eagle3 import SWITCHES, Eagle3Shape
from specpipe.stages.drafters.eagle3.layout import ALLOWED_KEYS, REQUIRED_KEYS
from specpipe.stages.drafters.parts.eagle.speculators import EagleSpeculators


class Speculators(EagleSpeculators[Eagle3Shape]):
    architecture = "Eagle3Speculator"
    switches = SWITCHES
    required = REQUIRED_KEYS
    allowed = ALLOWED_KEYS
