"""DSpark: DFlash's blocks, then a bias on each draft by the token before it."""

from typing import Literal

from pydantic import Field

from specpipe.schemas.drafters.base import MOST_WIDTH
from specpipe.schemas.drafters.block import BlockSettings, BlockShape


class DSparkSettings(BlockSettings):
    kind: Literal["dspark"] = "dspark"
    markov_rank: int = Field(256, ge=1, le=2**12)
    """Rank of the bias that the token before a draft gives it."""
    confidence: bool = True
    """Train a head that says how probably each draft is accepted."""


class DSparkShape(BlockShape):
    """Slot 0 of a block is the last token, and drafts the next one."""

    architecture: Literal["dspark"] = "dspark"
    markov_rank: int = Field(le=MOST_WIDTH)
    confidence: bool
