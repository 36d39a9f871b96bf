"""Presets of `specpipe train`: settings that flags and the configuration file win over."""

from typing import Any, Literal, NamedTuple

PresetName = Literal["quick", "default", "best"]


class Preset(NamedTuple):
    """Settings that differ from TrainConfig's defaults, and what a run with them came to."""

    settings: dict[str, Any]
    figures: str
    """As MEASURED says."""


MEASURED = (
    "tau is that of sample_data/dump_held_out.yaml after training on sample_data/dump.yaml with"
    " --draft-vocab-size 1024, at temperature 1 with 3 draft tokens (untrained: 1.04)."
)

PRESETS: dict[PresetName, Preset] = {
    "quick": Preset(
        {"learning_rate": 2e-3, "batch_tokens": 1024, "max_steps": 60, "eval_tokens": 12_000},
        "tau 1.37",
    ),
    "default": Preset({}, "tau 1.60"),
    "best": Preset(
        {"learning_rate": 2e-3, "batch_tokens": 4096},
        "tau 1.91",
    ),
}
