"""The `speculators` format, as far as all drafters have it alike."""

from collections.abc import Mapping
from typing import Any, TypeVar

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.stages.drafters.artifact_format import Format, Stated
from specpipe.stages.drafters.parts.artifact.speculators_config import is_speculators, stated

Shape = TypeVar("Shape", bound=DrafterShape)


class SpeculatorsFormat(Format[Shape]):
    """vLLM loads it directly."""

    name = "speculators"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return is_speculators(config)

    def drafter(self, config: Mapping[str, Any]) -> Stated | None:
        return stated(config)
