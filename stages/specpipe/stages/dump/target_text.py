"""A text of a dump, with its states."""

from dataclasses import dataclass

from specpipe.schemas.records.dump import GenerationCounts
from specpipe.stages.storage.shard.samples import PlannedSample
from specpipe.stages.target.backend import Captured


@dataclass(frozen=True, slots=True)
class TextWithStates:
    sample: PlannedSample
    """All of its tokens, with what is supervised of them."""
    states: Captured
    """Over all of its tokens."""
    counts: GenerationCounts | None = None
    """What became of its turns, where the target wrote them."""
