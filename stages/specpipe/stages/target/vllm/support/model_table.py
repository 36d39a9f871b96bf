"""The models of the vLLM versions that specpipe is tried with, for machines that have no vLLM.

`models.json` beside this file holds them; `scripts/serving/model_table.py` writes it from a vLLM's
folder, and a test holds it against the vLLM that is installed.
"""

import json
from functools import cache
from importlib.resources import files

from specpipe.stages.target.vllm.support.model_source import ModelSource

INTERFACES = {"eagle3": "SupportsEagle3"}
"""What a target's class must have in vLLM, by drafter method."""

Models = dict[str, tuple[str, ...]]
"""Architectures by what drafter methods vLLM serves for them (words, blanks between)."""

FILE = "models.json"


def models_of(source: ModelSource) -> Models:
    """The entry of a vLLM, read from its source."""
    found: dict[str, list[str]] = {}
    for architecture in source.architectures():
        found.setdefault(" ".join(methods_of(source, architecture)), []).append(architecture)
    return {methods: tuple(names) for methods, names in sorted(found.items())}


def methods_of(source: ModelSource, architecture: str) -> list[str]:
    """Drafter methods that a vLLM serves for a registered architecture, read from its source."""
    return [name for name, interface in INTERFACES.items() if source.has(architecture, interface)]


@cache
def model_table() -> dict[str, Models]:
    """The models by vLLM version (`0.32`), the oldest first."""
    text = files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    return {
        version: {methods: tuple(names) for methods, names in models.items()}
        for version, models in json.loads(text).items()
    }


def methods_in(models: Models, architecture: str) -> list[str] | None:
    """Drafter methods that are served for an architecture; None where vLLM does not have it."""
    found = [methods.split() for methods, names in models.items() if architecture in names]
    return found[0] if found else None
