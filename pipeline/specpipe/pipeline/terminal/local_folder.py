"""A folder on a local disk, as a parameter of a command."""

import os
from pathlib import Path
from typing import Any

import click

from specpipe.schemas.location import local_path


class LocalFolder(click.Path):
    """A URL is refused: as a path it would be a folder of that name here."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        path = local_path(os.fspath(value), "this folder is on a local disk; give a path")
        return super().convert(path, param, ctx)
