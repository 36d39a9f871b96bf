"""The key `specpipe` of a config: what formats that engines read have no place for.

Engines pass over it.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    Format,
    Stated,
    TargetFacts,
    stated_drafter,
)

OWN = "specpipe"

Shape = TypeVar("Shape", bound=DrafterShape)


def own_settings(drafter: Drafter[Any], **more: object) -> dict[str, Any]:
    """The target, the number of draft tokens, and `more`."""
    return {
        OWN: {
            "target": drafter.target,
            "target_architecture": drafter.target_architecture,
            "speculative_tokens": drafter.speculative_tokens,
            **more,
        }
    }


class OwnKeyFormat(Format[Shape]):
    """A format that names the target and the number of draft tokens under this key."""

    def drafter(self, config: Mapping[str, Any]) -> Stated | None:
        try:
            own = config[OWN]
            return stated_drafter(
                own["target"], own["target_architecture"], own["speculative_tokens"]
            )
        except (KeyError, TypeError):
            return None

    def target_problems(self, config: Mapping[str, Any], target: TargetFacts) -> list[str]:
        """Whether the key says the target, and this one."""
        declared = self.drafter(config)
        if declared is None:
            return [f"{OWN} does not say the target and a positive number of draft tokens"]
        if declared[1] != target.architecture:
            return [f"target_architecture {declared[1]!r} is not {target.architecture!r}"]
        return []
