"""The drafter architectures, by name; those of other packages by their entry points."""

from importlib import import_module
from typing import Any, cast

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.drafters.registry import foreign
from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.artifact import ArtifactFiles, reading_config
from specpipe.stages.drafters.contract import Architecture

_FOLDERS = ("eagle3", "peagle", "dflash", "dspark", "mtp", "medusa", "eagle1")
"""The first one also recognises what says little of itself: it is asked last."""

AnyArchitecture = Architecture[Any]


def architecture(name: str) -> AnyArchitecture:
    """Raises ConfigError for a name that nobody has."""
    if name in _FOLDERS:
        module = import_module(f"specpipe.stages.drafters.{name}.architecture")
        return cast(AnyArchitecture, module.ARCHITECTURE)
    if name in foreign():
        return cast(AnyArchitecture, foreign()[name].load())
    raise ConfigError(f"there is no drafter {name!r}; give one of {', '.join(names())}")


def names() -> list[str]:
    return [*_FOLDERS, *foreign()]


def drafter_kind(shape: DrafterShape) -> AnyArchitecture:
    return architecture(shape.architecture)


def recognised(files: ArtifactFiles) -> AnyArchitecture:
    """The architecture of an artifact; raises ConfigError where it is of none that is known."""
    with reading_config(files.folder):
        for name in reversed(names()):
            if architecture(name).recognises(files):
                return architecture(name)
    raise ConfigError(
        f"artifact {files.folder} is no drafter that is known here ({', '.join(names())})"
    )
