"""Write checkpoints atomically, delete old ones, and resume from one.

Kept in float32: the weights, the optimiser's moments. Kept besides: the random generators' state
of every rank, the place in the data, and the sha256 of every file. Tensors are whole, whatever the
number of ranks that they were sharded over: any number can go on.
"""

import hashlib
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from specpipe.schemas.errors import IntegrityError, StoreError
from specpipe.schemas.records.checkpoint import (
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
from specpipe.stages.runs.checkpoint import Checkpoint
from specpipe.stages.runs.pointers import read_pointer
from specpipe.stages.storage.store.local_disk import sync_folder, write_file
from specpipe.stages.train.ranks.sharding import like, whole
from specpipe.stages.train.trainee import Trainee
from specpipe.stages.untrusted.foreign import foreign_call
from specpipe.stages.untrusted.tensors import load_tensors

_RNG = "rng."


def restore(checkpoint: Checkpoint, trainee: Trainee) -> None:
    """Put weights, optimiser and random generators back.

    Raises IntegrityError where they are not those of the trainee's model.
    """
    parameters = dict(trainee.model.named_parameters())
    with foreign_call(f"checkpoint {checkpoint.path} does not fit its drafter", IntegrityError):
        weights = {name: like(t, parameters[name]) for name, t in checkpoint.model.items()}
        trainee.model.load_state_dict(weights, strict=True)
    tensors = load_tensors(checkpoint.files[OPTIMIZER_FILE], f"{checkpoint.path / OPTIMIZER_FILE}")
    generators = {key: tensors.pop(key) for key in list(tensors) if key.startswith(_RNG)}
    _restore_generators(generators, trainee)
    if foreign := sorted({key.rsplit("/", 1)[0] for key in tensors} - {*parameters}):
        raise IntegrityError(
            f"checkpoint {checkpoint.path} has an optimiser's state of {foreign[0]}, which its"
            " drafter does not have"
        )
    trainee.optimizer.load_state(
        {key: like(t, parameters[key.rsplit("/", 1)[0]]) for key, t in tensors.items()}
    )


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def _name(state: TrainState) -> str:
    """Of its own while the evaluation is to come: the one after it has the step's plain name."""
    return checkpoint_name(state.step) + ("-unevaluated" if state.eval_due else "")


def save_checkpoint(
    run: Path, trainee: Trainee, state: TrainState, *, best: bool, keep: int
) -> None:
    """Write a checkpoint, point `latest` (and `best`) at it, and remove older ones.

    Every rank takes part, the first one writes; where it cannot, all raise its StoreError.
    """
    # Read before anything is serialised: gathering takes all ranks.
    weights = _gathered(trainee.model.state_dict(), trainee)
    optimizer = _gathered(trainee.optimizer.state(), trainee) | _generators(trainee)
    with trainee.ranks.together():
        if trainee.ranks.is_first:
            files = {
                MODEL_FILE: save(weights),
                OPTIMIZER_FILE: save(optimizer),
                VOCAB_MAP_FILE: save(trainee.vocab.tensors()),
                DRAFTER_FILE: trainee.shape.model_dump_json(indent=2).encode(),
            }
            _write(run, files, state)
            # `latest` last: a kill before it repeats this save, and `best` with it.
            if best:
                write_file(run / BEST_FILE, _name(state).encode())
            write_file(run / LATEST_FILE, _name(state).encode())
            _rotate(run, keep)


def _write(run: Path, files: dict[str, bytes], state: TrainState) -> None:
    folder = run / CHECKPOINTS_FOLDER
    final = folder / _name(state)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    # Validated anew, which seals the state as it is now.
    state = TrainState.model_validate(
        state.model_dump() | {"files_sha256": sums, "content_sha256": ""}
    )
    files = files | {STATE_FILE: state.model_dump_json(indent=2).encode()}
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


def _gathered(tensors: dict[str, Tensor], trainee: Trainee) -> dict[str, Tensor]:
    """Whole tensors on the CPU, on the first rank; the others only give their shards."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if trainee.ranks.is_first:
            found[name] = full
    return found


def _generators(trainee: Trainee) -> dict[str, Tensor]:
    """The state of every rank's random generators: rng.cpu.0, rng.cuda.0, rng.cpu.1, ..."""
    own = {"cpu": torch.get_rng_state()}
    if trainee.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(trainee.device)
    return {
        f"{_RNG}{kind}.{rank}": state
        for rank, data in enumerate(trainee.ranks.gather(save(own)))
        for kind, state in load(data).items()
    }


def _restore_generators(states: dict[str, Tensor], trainee: Trainee) -> None:
    rank = trainee.ranks.rank
    if f"{_RNG}cpu.{rank}" not in states:
        # A rank that the run did not have before.
        torch.manual_seed(trainee.config.seed + rank)
        return
    torch.set_rng_state(states[f"{_RNG}cpu.{rank}"])
    if trainee.device.type == "cuda" and f"{_RNG}cuda.{rank}" in states:
        torch.cuda.set_rng_state(states[f"{_RNG}cuda.{rank}"], trainee.device)


def _rotate(run: Path, keep: int) -> None:
    folder = run / CHECKPOINTS_FOLDER
    pointed = {read_pointer(run, LATEST_FILE), read_pointer(run, BEST_FILE)}
    names = sorted(p.name for p in folder.iterdir() if p.name.startswith("step-"))
    for name in names[:-keep]:
        if name not in pointed:
            _remove(folder / name)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    try:
        shutil.rmtree(checkpoint)
    except OSError as error:
        raise StoreError(f"cannot remove {checkpoint}: {error.strerror}") from error
