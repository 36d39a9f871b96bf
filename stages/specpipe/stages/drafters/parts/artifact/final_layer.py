"""Artifacts of drafters that read the target's final state alone.

Their configs, as engines read them, do not say how many layers the target has: the key `specpipe`
does.
"""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.stages.drafters.artifact import OfTarget
from specpipe.stages.drafters.artifact_format import TargetFacts, mismatches
from specpipe.stages.drafters.parts.artifact.own_key import OWN


def declared_layers_of_target(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The layer id of the final state; KeyError or TypeError where a config does not say it."""
    return (config[OWN]["target_layers"],)


def known_final_layer(config: Mapping[str, Any], target: OfTarget | None) -> tuple[int, ...] | None:
    """The layer id of the final state, by the config or by the target; None where neither says."""
    own = config.get(OWN)
    stated = own.get("target_layers") if isinstance(own, dict) else None
    if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
        return (stated,)
    return None if target is None or not target.aux_layers else target.aux_layers[-1:]


def target_mismatches(shape: DrafterShape, target: TargetFacts) -> list[str]:
    """What of the shape is another target's."""
    return mismatches(
        (
            ("hidden_size", shape.width, target.hidden_size),
            ("vocab_size", shape.vocab_size, target.vocab_size),
            ("target_layers", shape.aux_layers[0], target.num_layers),
        )
    )
