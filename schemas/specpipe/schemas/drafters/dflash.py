"""DFlash: a block of mask tokens behind the last token, filled in one pass."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from specpipe.schemas.drafters.block import BlockSettings, BlockShape


class DFlashSettings(BlockSettings):
    own_recipe: ClassVar[Mapping[str, Any]] = {"head_weights": "dpace"}
    kind: Literal["dflash"] = "dflash"


class DFlashShape(BlockShape):
    """Slot 0 of a block is the last token, which drafts nothing."""

    architecture: Literal["dflash"] = "dflash"
