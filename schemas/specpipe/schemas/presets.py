"""Presets of `specpipe train`: settings that flags and the configuration file win over."""

from typing import Any, Literal, NamedTuple

PresetName = Literal["quick", "default", "best"]


class Preset(NamedTuple):
    """Settings that differ from TrainConfig's defaults, and what a run with them came to."""

    settings: dict[str, Any]
    figures: str
    """Of sample_data with --draft-vocab-size 1024 (untrained: tau 1.04)."""


PRESETS: dict[PresetName, Preset] = {
    "quick": Preset(
        {"learning_rate": 2e-3, "batch_tokens": 1024, "max_steps": 60, "eval_tokens": 12_000},
        "tau 1.37 of sample_data at temperature 1, 3 draft tokens",
    ),
    "default": Preset({}, "tau 1.60 of sample_data at temperature 1, 3 draft tokens"),
    "best": Preset(
        {"learning_rate": 2e-3, "batch_tokens": 4096},
        "tau 1.91 of sample_data at temperature 1, 3 draft tokens",
    ),
}
