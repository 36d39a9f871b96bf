"""Reading an artifact of any architecture, in any format."""

from collections.abc import Mapping
from typing import Any

from specpipe.stages.drafters.artifact import (
    Artifact,
    ArtifactFiles,
    OfTarget,
    read_files,
    reading_config,
)
from specpipe.stages.drafters.artifact_format import Format
from specpipe.stages.drafters.registry import AnyArchitecture, recognised


def read_artifact(location: str, target: OfTarget | None = None) -> Artifact:
    """The artifact in a local folder; raises ConfigError where it is none for this target.

    Without a target, the artifact has to say everything itself.
    """
    files = read_files(location)
    return read_as(recognised(files), files, target)


def read_as(kind: AnyArchitecture, files: ArtifactFiles, target: OfTarget | None) -> Artifact:
    """The files as an artifact of this architecture; raises ConfigError where they are none."""
    with reading_config(files.folder):
        return kind.read(files, target)


def format_of(architecture: AnyArchitecture, config: Mapping[str, Any]) -> Format[Any]:
    """The format that a config of this architecture is written in."""
    return next(
        (format for format in architecture.formats.values() if format.recognises(config)),
        next(iter(architecture.formats.values())),
    )
