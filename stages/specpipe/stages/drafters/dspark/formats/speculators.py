"""The `speculators` format of a DSpark drafter, which vLLM loads directly (from 0.27.1 on)."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.dspark import DSparkShape
from specpipe.stages.drafters.artifact_format import Drafter, TargetFacts
from specpipe.stages.drafters.dspark.config import HEAD_KEYS, head_problems, head_settings
from specpipe.stages.drafters.parts.artifact.speculators_config import (
    speculators_problems,
)
from specpipe.stages.drafters.parts.artifact.speculators_format import SpeculatorsFormat
from specpipe.stages.drafters.parts.block.config import NON_CAUSAL
from specpipe.stages.drafters.parts.block.speculators import (
    block_keys,
    block_settings,
    key_problems,
)


class Speculators(SpeculatorsFormat[DSparkShape]):
    def config(self, drafter: Drafter[DSparkShape]) -> dict[str, Any]:
        """vLLM passes over `sliding_window_non_causal` here; speculators reads it."""
        return {
            "architectures": ["DSparkSpeculator"],
            **block_settings("dspark", drafter),
            **head_settings(drafter.shape),
            NON_CAUSAL: not drafter.shape.causal,
        }

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        return key_problems(config, block_keys() | HEAD_KEYS | {NON_CAUSAL})

    def problems(
        self,
        config: Mapping[str, Any],
        shape: DSparkShape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        problems = speculators_problems(config, "dspark", target)
        problems += head_problems(config, shape, target)
        if config[NON_CAUSAL] is not (not shape.causal):
            problems.append(f"{NON_CAUSAL} is {config[NON_CAUSAL]!r}, against dflash_config")
        return problems
