"""Reading a training checkpoint, whole and checked.

A checkpoint folder holds model.safetensors, optimizer.safetensors, vocab.safetensors, drafter.json
and state.json (schemas/records/checkpoint.py); state.json has the sha256 of the others.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.drafters.registry import shape_of_json
from specpipe.schemas.errors import IntegrityError, SpecpipeError
from specpipe.schemas.records.checkpoint import (
    DRAFTER_FILE,
    MODEL_FILE,
    STATE_FILE,
    VOCAB_MAP_FILE,
    TrainState,
)
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.tensors import load_tensors


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as read from disk; `model` holds the artifact's tensor names, float32."""

    path: Path
    shape: DrafterShape
    vocab: VocabMap
    model: dict[str, Tensor]
    state: TrainState
    files: dict[str, bytes]

    @property
    def num_heads(self) -> int:
        return self.state.num_heads


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises IntegrityError naming the file that is damaged, StoreError that which cannot be read.
    """
    try:
        state = TrainState.model_validate_json(_read(path / STATE_FILE))
        files = {name: _read(path / Path(name).name) for name in state.files_sha256}
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != state.files_sha256[name]:
                raise IntegrityError(
                    f"{path / name} is damaged: its sha256 is not that of the save"
                )
        model = load_tensors(files[MODEL_FILE], f"{path / MODEL_FILE}")
        shape = _shape(files[DRAFTER_FILE])
        _check_shape(shape, model, path)
        return Checkpoint(
            path=path,
            shape=shape,
            vocab=VocabMap.from_tensors(
                load_tensors(files[VOCAB_MAP_FILE], f"{path / VOCAB_MAP_FILE}")
            ),
            model=model,
            state=state,
            files=files,
        )
    except SpecpipeError:
        raise
    except (ValueError, KeyError) as error:
        raise IntegrityError(f"checkpoint {path} is damaged: {error}") from None


def stored_shape(path: Path) -> DrafterShape:
    """The shape of a checkpoint's drafter; raises IntegrityError where it is damaged."""
    try:
        return _shape(_read(path / DRAFTER_FILE))
    except SpecpipeError:
        raise
    except ValueError as error:
        raise IntegrityError(f"{path / DRAFTER_FILE} is damaged: {error}") from None


def _shape(stored: bytes) -> DrafterShape:
    """The stored shape, without what training passed over."""
    shape = shape_of_json(stored)
    trained: DrafterShape = drafter_kind(shape).as_trained(shape)
    return trained


def _check_shape(shape: DrafterShape, model: dict[str, Tensor], path: Path) -> None:
    """Raise IntegrityError for a shape that training never gives a drafter.

    A checkpoint may be a stranger's: whoever makes the model, makes all the layers that it claims.
    """
    problems = drafter_kind(shape).stored_problems(shape, model)
    if problems:
        raise IntegrityError(f"checkpoint {path} is damaged: {'; '.join(problems)}")


def _read(path: Path) -> bytes:
    if not path.exists():
        raise IntegrityError(f"{path} is missing; take another checkpoint of the run")
    return read_file(path, most_bytes=None)
