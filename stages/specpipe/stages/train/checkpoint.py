"""Writing checkpoints: whole or not at all, rotated; and going on from one.

Kept in float32: the weights, the optimiser's moments. Kept besides: the random generators' state,
the place in the data, and the sha256 of every file.
"""

import hashlib
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from specpipe.schemas.checkpoint import (
    BEST_FILE,
    CHECKPOINTS_FOLDER,
    DRAFTER_FILE,
    LATEST_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    VOCAB_MAP_FILE,
    TrainState,
)
from specpipe.schemas.errors import StoreError
from specpipe.stages.drafter.checkpoint import Checkpoint, read_pointer
from specpipe.stages.train.run_folder import sync_folder, write_atomically
from specpipe.stages.train.trainee import Trainee


def restore(checkpoint: Checkpoint, trainee: Trainee) -> None:
    """Put weights, optimiser and random generators back."""
    trainee.model.load_state_dict(checkpoint.model, strict=True)
    tensors = load(checkpoint.files[OPTIMIZER_FILE])
    torch.set_rng_state(tensors.pop("rng.cpu"))
    if "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors.pop("rng.cuda"))
    trainee.optimizer.load_state(tensors)


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def save_checkpoint(
    run: Path, trainee: Trainee, state: TrainState, *, best: bool, keep: int
) -> None:
    """Write a checkpoint, point `latest` (and `best`) at it, and remove older ones."""
    folder = run / CHECKPOINTS_FOLDER
    final = folder / checkpoint_name(state.step)
    files = {
        MODEL_FILE: save({k: v.contiguous().cpu() for k, v in trainee.model.state_dict().items()}),
        OPTIMIZER_FILE: save(_optimizer_tensors(trainee)),
        VOCAB_MAP_FILE: save(trainee.vocab.tensors()),
        DRAFTER_FILE: trainee.shape.model_dump_json(indent=2).encode(),
    }
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    # Validated anew, which seals the state as it is now.
    state = TrainState.model_validate(
        state.model_dump() | {"files_sha256": sums, "content_sha256": ""}
    )
    files[STATE_FILE] = state.model_dump_json(indent=2).encode()
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, data in files.items():
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(temporary)
        if final.exists():
            # Left whole by a run that was killed between the rename and the pointer.
            shutil.rmtree(temporary)
        else:
            temporary.rename(final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(
            f"cannot write checkpoint {final}: {error.strerror}; the ones before it are intact"
        ) from error
    # `latest` last: a kill before it repeats this save, and `best` with it.
    if best:
        write_atomically(run / BEST_FILE, final.name.encode())
    write_atomically(run / LATEST_FILE, final.name.encode())
    _rotate(run, keep)


def _optimizer_tensors(trainee: Trainee) -> dict[str, Tensor]:
    state = trainee.optimizer.state()
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if trainee.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return tensors


def _rotate(run: Path, keep: int) -> None:
    folder = run / CHECKPOINTS_FOLDER
    pointed = {read_pointer(run, LATEST_FILE), read_pointer(run, BEST_FILE)}
    names = sorted(p.name for p in folder.iterdir() if p.name.startswith("step-"))
    for name in names[:-keep]:
        if name not in pointed:
            shutil.rmtree(folder / name)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
