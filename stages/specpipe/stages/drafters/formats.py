"""The formats of an artifact, by name and by what a config looks like."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.records.artifact import FormatName
from specpipe.stages.drafters.artifact_format import Format
from specpipe.stages.drafters.eagle3.formats.flat import FlatFormat
from specpipe.stages.drafters.eagle3.formats.speculators import Speculators

FORMATS: Mapping[FormatName, Format] = {
    format.name: format for format in (Speculators(), FlatFormat())
}


def format_of(config: Mapping[str, Any]) -> Format:
    """The format that a config is written in."""
    is_nested = "speculators_model_type" in config or "transformer_layer_config" in config
    return FORMATS["speculators" if is_nested else "eagle3"]
