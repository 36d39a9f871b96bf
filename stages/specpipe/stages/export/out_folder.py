"""The folder that an export writes to, and what is refused to be overwritten in it.

validation.json is what makes a folder ours: it is the first thing that is written there, as a
record that says that the export has not finished, so that one that was killed can be continued.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from specpipe.schemas.errors import ConfigError, IntegrityError, StoreError
from specpipe.schemas.location import local_path
from specpipe.schemas.records.artifact import ARTIFACT_FOLDER, CARD_FILE, VALIDATION_FILE
from specpipe.schemas.records.checkpoint import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    PROVENANCE_FILE,
    STATE_FILE,
)
from specpipe.schemas.records.validation import Validation
from specpipe.stages.drafters.artifact_format import Format
from specpipe.stages.storage.store.local_disk import check_no_file, write_file
from specpipe.stages.storage.store.lock import locked
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.json_text import parse_object

LOCK_FILE = ".export.lock"
OURS = {"passed", "problems", "config", "checkpoint_sha256", "artifact_sha256"}
"""Keys of a validation.json, of whichever version of specpipe."""


class OutFolder:
    """OUT: the artifact's folder, validation.json and the card."""

    def __init__(self, location: str) -> None:
        self.path = local_path(location, "an artifact is written to a local disk; copy it there")

    @property
    def artifact(self) -> Path:
        return self.path / ARTIFACT_FOLDER

    def check(self) -> None:
        """Raise ConfigError where something is in the way that no export wrote."""
        with self._errors():
            check_no_file(self.path)
            is_run = (self.path / CHECKPOINTS_FOLDER).exists() and self._has(CONFIG_FILE)
            if is_run or self._has(STATE_FILE):
                raise ConfigError(
                    f"{self.path} is a training run or a checkpoint of one; give another --out"
                )
            names = (ARTIFACT_FOLDER, CARD_FILE, VALIDATION_FILE, PROVENANCE_FILE)
            found = [name for name in names if self._has(name)]
            if found and not self._is_ours():
                raise ConfigError(
                    f"{self.path} already has {', '.join(found)}, which no export wrote (no"
                    f" {VALIDATION_FILE} of specpipe is there); give another --out, or move that"
                    " away"
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only export that writes here; raises ConfigError where another one does.

        The folder's usual lock may be that of the job which this export belongs to.
        """
        with locked(self.path, "another export writes to this folder", name=LOCK_FILE):
            yield

    def write_validation(self, validation: Validation) -> None:
        """Write validation.json, and OUT itself where it is missing."""
        with self._errors():
            self.path.mkdir(parents=True, exist_ok=True)
            write_file(self.path / VALIDATION_FILE, validation.model_dump_json(indent=2).encode())

    def write_artifact(
        self, format: Format[Any], config: dict[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        """Write OUT/checkpoint whole: in a folder beside it, which then takes its name."""
        temporary = self.path / f".{ARTIFACT_FOLDER}.{os.getpid()}.tmp"
        with self._errors():
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                format.write(temporary, config, tensors)
                shutil.rmtree(self.artifact, ignore_errors=True)
                temporary.rename(self.artifact)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def write_card(self, text: str) -> None:
        with self._errors():
            write_file(self.path / CARD_FILE, text.encode())

    def _has(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def _is_ours(self) -> bool:
        try:
            path = self.path / VALIDATION_FILE
            return set(parse_object(read_file(path), str(path))) >= OURS
        except IntegrityError:
            return False

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"cannot write to {self.path}: {error}") from error
