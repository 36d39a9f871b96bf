"""The folder of a training run: its lock, its configuration, its metrics."""

import json
import shutil
from collections.abc import Mapping, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import ValidationError as PydanticError

from specpipe.schemas.errors import ConfigError, IdentityError, IntegrityError, StoreError
from specpipe.schemas.location import local_path
from specpipe.schemas.records.checkpoint import (
    BEST_FILE,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    LATEST_FILE,
    METRICS_FILE,
    TrainState,
)
from specpipe.schemas.records.dump import DUMP_FILE
from specpipe.schemas.records.tune import PLAN_FILE
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.stages.runs.metric_rows import Row, metric_rows
from specpipe.stages.storage.store.local_disk import write_file
from specpipe.stages.storage.store.lock import locked
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.foreign import first_bad_field

MAY_CHANGE = frozenset(
    {
        "dump",
        "eval_dump",
        "mix",
        "out",
        "device",
        "pack_tokens",
        "loss_chunk_mib",
        "shard",
        "attention",
        "activation_checkpointing",
        "embedding_on_cpu",
        "time_limit",
        "require_servable",
        "checkpoint_every",
        "keep_checkpoints",
        "learning_curve",
        "preverify",
        "prefetch_mib",
        "log",
        "log_project",
        "log_name",
    }
)
"""Settings that a resume may have others of: they do not change what a run computes, or, for the
dumps, their fingerprints (in a mixture with their weights) are compared instead of their places."""


class RunFolder:
    """One run directory on a local disk."""

    def __init__(self, path: str) -> None:
        self.path = local_path(path, "a run is written to a local disk; copy it there").expanduser()

    def locked(self) -> AbstractContextManager[object]:
        """Hold the folder for this process; raises ConfigError where another one has it, or
        another output lies there."""
        refuse_others(self.path, CONFIG_FILE)
        return locked(self.path, "another process is training in this directory")

    def check_config(self, config: TrainConfig) -> None:
        """Raise IdentityError where the run that is here began with other settings than those that
        are set now.

        A preset is compared where the run says its own: before, presets were other settings.
        """
        if not (self.path / CONFIG_FILE).exists():
            return
        begun = self.read_config()
        before, now = begun.flat(), config.without_credentials().flat()
        known = begun.flat_fields_set | (now.keys() - {"preset"})
        check_same(f"{self.path} holds a run", before, now, _set_of(config) & known)

    def begun(self) -> bytes:
        """The settings that the run here began with, as JSON; nothing where none is here."""
        if not (self.path / CONFIG_FILE).exists():
            return b""
        return self.read_config().model_dump_json(exclude_unset=True).encode()

    def read_config(self) -> ResolvedTrainConfig:
        path = self.path / CONFIG_FILE
        try:
            return ResolvedTrainConfig.model_validate_json(read_file(path))
        except PydanticError as error:
            raise IntegrityError(
                f"{path} is damaged ({first_bad_field(error)}); remove it and run the command that"
                " began the run again, or use another --out"
            ) from None

    def write_config(self, config: ResolvedTrainConfig) -> None:
        text = config.without_credentials().model_dump_json(indent=2)
        write_file(self.path / CONFIG_FILE, text.encode())

    def forget_weights(self) -> None:
        """Free the disk of what a complete run holds besides its figures; without its result it is
        then trained anew."""
        for pointer in (LATEST_FILE, BEST_FILE):
            (self.path / pointer).unlink(missing_ok=True)
        shutil.rmtree(self.path / CHECKPOINTS_FOLDER, ignore_errors=True)

    def cut_metrics(self, state: TrainState) -> None:
        """Drop what a run that goes on from `state` says again, and a torn last line."""
        path = self.path / METRICS_FILE
        if not path.exists():
            return
        kept = [_as_line(row) for row in metric_rows(self.path) if _stands(row, state)]
        write_file(path, "".join(kept).encode())

    def append_metrics(self, row: dict[str, Any]) -> None:
        path = self.path / METRICS_FILE
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(_as_line(row))
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from error


def check_same(
    what: str, before: Mapping[str, Any], now: Mapping[str, Any], compared: Set[str]
) -> None:
    """Raise IdentityError, beginning with `what`, where one of the `compared` settings that a
    resume may not change is another one now."""
    names = [name for name in now if name in compared - MAY_CHANGE]
    changes = ", ".join(
        f"{name}: {before.get(name)!r} -> {now[name]!r}"
        for name in names
        if now[name] != before.get(name)
    )
    if changes:
        raise IdentityError(
            f"{what} with other settings ({changes}); use another --out, or the same settings to"
            " continue it"
        )


def continued(config: TrainConfig, begun: bytes) -> TrainConfig:
    """The settings of a run that goes on: those that it began with, but for what may change.

    `begun` is what `RunFolder.begun` gave. What the command sets still counts as set.
    """
    if not begun:
        return config
    before = ResolvedTrainConfig.model_validate_json(begun)
    values = dict(before)
    if "preset" not in before.model_fields_set:
        # Presets were other settings then; the command that began it may go on to name one.
        values["preset"] = config.preset
    # The recipe may have set the size of a pass.
    kept = {"pack_tokens"} - _set_of(config)
    values |= {name: getattr(config, name) for name in MAY_CHANGE - kept}
    return ResolvedTrainConfig.model_construct(_fields_set=set(config.model_fields_set), **values)


def _set_of(config: TrainConfig) -> set[str]:
    """What the command sets; None leaves a setting open."""
    values = config.flat()
    return {name for name in config.flat_fields_set if values[name] is not None}


def _stands(row: Row, state: TrainState) -> bool:
    if row["step"] == state.step and "eval" in row:
        return not state.eval_due
    return bool(row["step"] <= state.step)


def _as_line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


OUTPUTS = {
    DUMP_FILE: "a dump",
    CONFIG_FILE: "a training run",
    PLAN_FILE: "a search of specpipe tune or choose",
}
"""What a folder is that has one of these files."""


def refuse_others(path: Path, own: str) -> None:
    """Raise ConfigError where a folder to write to holds what another command wrote; `own` is the
    file that those of this one have."""
    for name, what in OUTPUTS.items():
        if name != own and (path / name).exists():
            raise ConfigError(f"{path} holds {what}; give another --out")
