"""The models of the vLLM versions that specpipe is tried with, for machines that have no vLLM.

`models.json` beside this file holds them; `scripts/serving/model_table.py` writes it from a vLLM's
folder, and a test holds it against the vLLM that is installed.
"""

import json
from functools import cache
from importlib.resources import files

from specpipe.stages.target.vllm.support.aux_interface import FOR_MTP_ALONE, SETTER
from specpipe.stages.target.vllm.support.model_source import ModelSource
from specpipe.stages.target.vllm.support.mtp_layers import MTP_LAYERS

Models = dict[str, tuple[str, ...]]
"""Architectures by what of theirs drafters can read in vLLM, beside the final state, which they
give but for FOR_MTP_ALONE (values of `engine_needs.Reads`, blanks between)."""

FILE = "models.json"


def models_of(source: ModelSource) -> Models:
    """The entry of a vLLM, read from its source."""
    found: dict[str, list[str]] = {}
    for architecture in source.architectures():
        found.setdefault(" ".join(readable_of(source, architecture)), []).append(architecture)
    return {readable: tuple(names) for readable, names in sorted(found.items())}


def readable_of(source: ModelSource, architecture: str) -> list[str]:
    """What of a registered architecture drafters can read, from a vLLM's source."""
    layer = MTP_LAYERS.get(architecture)
    found = {
        "aux_states": architecture not in FOR_MTP_ALONE
        and source.has(architecture, source.interface_with(SETTER)),
        "mtp_layer": layer is not None and layer.drafter in source.drafters(),
    }
    return [name for name, has_it in found.items() if has_it]


@cache
def model_table() -> dict[str, Models]:
    """The models by vLLM version (`0.32`), the oldest first."""
    text = files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    return {
        version: {readable: tuple(names) for readable, names in models.items()}
        for version, models in json.loads(text).items()
    }


def readable_in(models: Models, architecture: str) -> list[str] | None:
    """What of an architecture drafters can read; None where vLLM does not have it."""
    found = [readable.split() for readable, names in models.items() if architecture in names]
    return found[0] if found else None
