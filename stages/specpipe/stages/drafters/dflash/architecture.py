"""DFlash behind the contract."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from specpipe.schemas.drafters.dflash import DFlashSettings, DFlashShape
from specpipe.stages.drafters.artifact_format import Format
from specpipe.stages.drafters.contract import Serving
from specpipe.stages.drafters.dflash.formats.speculators import Speculators
from specpipe.stages.drafters.dflash.formats.zlab import ZLab
from specpipe.stages.drafters.dflash.model import DFlash
from specpipe.stages.drafters.dflash.proposal import PlainDFlash
from specpipe.stages.drafters.parts.block.architecture import BlockArchitecture
from specpipe.stages.drafters.parts.block.structure import declared_values
from specpipe.stages.target.head.target_tensors import TargetTensors

_FORMATS: tuple[Format[DFlashShape], ...] = (Speculators(), ZLab())


class DFlashArchitecture(BlockArchitecture[DFlashShape]):
    name = "dflash"
    settings = DFlashSettings
    shape = DFlashShape
    serving = Serving(method="dflash", title="DFlash", is_parallel=True)
    formats = MappingProxyType({format.name: format for format in _FORMATS})
    model = DFlash
    kinds = frozenset({"dflash", "DFlashDraftModel"})

    def declared_shape(self, config: Mapping[str, Any]) -> DFlashShape:
        return DFlashShape.model_validate(declared_values(config))

    def needed_engine(self, shape: DFlashShape) -> str | None:
        return (
            "vLLM 0.20 or newer, on a GPU with an attention kernel that takes masks that are not"
            " causal (FLASH_ATTN, FLEX_ATTENTION, FLASHINFER)"
            if not shape.causal
            else "vLLM 0.20 or newer"
        )

    def proposal(self, folder: Path, target: TargetTensors) -> PlainDFlash:
        return PlainDFlash.load(folder, target)


ARCHITECTURE = DFlashArchitecture()
