"""What a drafter architecture needs of vLLM, in vLLM's words, and whether a version has it.

vLLM has two model runners: V2 is the one on a GPU and leaves what it lacks to V1; on a CPU there is
V1 alone.
"""

from dataclasses import dataclass
from typing import Literal

Reads = Literal["aux_states", "final_state", "mtp_layer"]
"""Of the target: hidden states between its layers; its last layer's state alone; or that state, by
a drafter that is a layer of the target's own kind."""

Runner = Literal["V1", "V2"]


@dataclass(frozen=True, slots=True)
class EngineNeeds:
    """The facts of an architecture that the engine must know."""

    method: str
    """`method` of `--speculative-config`."""
    title: str
    """The architecture's name in prose."""
    reads: Reads = "aux_states"
    is_parallel: bool = False
    """A round's drafts come from one pass."""


_REFUSED: dict[str, dict[Runner, frozenset[str]]] = {
    "0.32": {"V1": frozenset({"dspark"}), "V2": frozenset({"medusa"})},
    "0.33": {"V1": frozenset({"dspark", "medusa"}), "V2": frozenset({"medusa"})},
}
"""By version, the oldest first: methods that a runner refuses, or that vLLM does not have."""

_PARALLEL_IN_V2 = frozenset({"dflash", "dspark"})
"""Methods that V2 drafts with in one pass."""


def runners(needs: EngineNeeds, minor: str) -> tuple[Runner, ...]:
    """The runners that draft in this way in a version (`0.32`); of another, the newest known."""
    refused = _REFUSED.get(minor) or list(_REFUSED.values())[-1]
    runners_that_draft: list[Runner] = []
    if needs.method not in refused["V1"]:
        runners_that_draft.append("V1")
    is_refused = needs.is_parallel and needs.method not in _PARALLEL_IN_V2
    if needs.method not in refused["V2"] and not is_refused:
        runners_that_draft.append("V2")
    return tuple(runners_that_draft)
