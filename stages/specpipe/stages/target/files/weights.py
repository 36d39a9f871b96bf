"""The tensors of a target's checkpoint, one after the other."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from specpipe.stages.target.files.location import weight_files
from specpipe.stages.untrusted.tensors import opened_tensors


def stored_tensors(folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[Any, str]]:
    """The tensors of these names in a target's weights, each as an open file and a name in it."""
    for path in weight_files(folder):
        with opened_tensors(path, f"target {folder}: {path.name}") as file:
            for name in sorted(file.keys()):
                if is_wanted(name):
                    yield file, name
