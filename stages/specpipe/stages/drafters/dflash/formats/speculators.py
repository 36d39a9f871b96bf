"""The `speculators` format of a DFlash drafter, which vLLM loads directly."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.dflash import DFlashShape
from specpipe.stages.drafters.artifact_format import Drafter, TargetFacts
from specpipe.stages.drafters.parts.artifact.speculators_config import (
    speculators_problems,
)
from specpipe.stages.drafters.parts.artifact.speculators_format import SpeculatorsFormat
from specpipe.stages.drafters.parts.block.config import FROM_ANCHOR, NON_CAUSAL
from specpipe.stages.drafters.parts.block.speculators import (
    block_keys,
    block_settings,
    key_problems,
)


class Speculators(SpeculatorsFormat[DFlashShape]):
    def config(self, drafter: Drafter[DFlashShape]) -> dict[str, Any]:
        """vLLM takes `sliding_window_non_causal` for all layers, also those without a window."""
        return {
            "architectures": ["DFlashSpeculator"],
            **block_settings("dflash", drafter),
            NON_CAUSAL: not drafter.shape.causal,
            FROM_ANCHOR: False,
        }

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        return key_problems(config, block_keys() | {NON_CAUSAL, FROM_ANCHOR})

    def problems(
        self,
        config: Mapping[str, Any],
        shape: DFlashShape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        problems = speculators_problems(config, "dflash", target)
        if config[NON_CAUSAL] is not (not shape.causal):
            problems.append(
                f"{NON_CAUSAL} is {config[NON_CAUSAL]!r}, but the drafter's blocks are"
                f" {'causal' if shape.causal else 'not causal'}: vLLM takes it for all layers,"
                " also those without a window"
            )
        if config[FROM_ANCHOR] is not False:
            problems.append(
                f"{FROM_ANCHOR} is {config[FROM_ANCHOR]!r}, but must be false: one of vLLM's model"
                " runners refuses it for DFlash, and the other passes over it"
            )
        return problems
