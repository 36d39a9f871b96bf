"""`validation.json`: what was exported, what was checked, what was found."""

import hashlib
from pathlib import Path

from pydantic import ValidationError as PydanticError

from specpipe.schemas.records.artifact import (
    ARTIFACT_FOLDER,
    CONFIG_FILE,
    MODEL_TENSORS_FILE,
    VALIDATION_FILE,
)
from specpipe.schemas.records.checkpoint import TrainState
from specpipe.schemas.records.validation import Validation
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.stages.untrusted.files import read_file


def still_stands(out: Path, config: ExportConfig, state: TrainState) -> Validation | None:
    """The validation in `out` if it passed, for the same settings, checkpoint and files."""
    path = out / VALIDATION_FILE
    if not path.exists():
        return None
    try:
        validation = Validation.model_validate_json(read_file(path))
    except PydanticError:
        return None  # another version's: it is written anew
    stands = (
        validation.passed
        and validation.config == config.settings()
        and validation.checkpoint_sha256 == state.files_sha256
        and validation.artifact_sha256 == artifact_sha256(out / ARTIFACT_FOLDER)
    )
    return validation if stands else None


def artifact_sha256(folder: Path) -> dict[str, str]:
    """sha256 of each file of the artifact that exists."""
    paths = [folder / name for name in (MODEL_TENSORS_FILE, CONFIG_FILE)]
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()
    }
