"""The folder of a training run: its lock, its configuration, its metrics."""

import json
from contextlib import AbstractContextManager
from typing import Any

from specpipe.schemas.checkpoint import CONFIG_FILE, METRICS_FILE, TrainState
from specpipe.schemas.errors import ConfigError, IdentityError, StoreError
from specpipe.schemas.location import local_path
from specpipe.schemas.train_config import TrainConfig
from specpipe.stages.drafter.metric_rows import Row, metric_rows
from specpipe.stages.storage.folder_lock import locked
from specpipe.stages.storage.local_disk import write_file
from specpipe.stages.untrusted.files import read_file

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
        """Hold the folder for this process; raises ConfigError where another one has it."""
        return locked(self.path, "another process is training in this directory")

    def check_config(self, config: TrainConfig) -> None:
        """Raise IdentityError where the run that is here began with other settings."""
        if not (self.path / CONFIG_FILE).exists():
            return
        before = self.read_config().model_dump()
        now = config.without_credentials().model_dump()
        differing = [f for f in now if f not in MAY_CHANGE and now[f] != before[f]]
        if differing:
            changes = ", ".join(f"{f}: {before[f]!r} -> {now[f]!r}" for f in differing)
            raise IdentityError(
                f"{self.path} holds a run with other settings ({changes});"
                " use another --out, or the same settings to continue it"
            )

    def read_config(self) -> TrainConfig:
        path = self.path / CONFIG_FILE
        try:
            return TrainConfig.model_validate_json(read_file(path, ConfigError))
        except ValueError as error:
            raise ConfigError(f"{path} cannot be read ({error}); use another --out") from None

    def write_config(self, config: TrainConfig) -> None:
        text = config.without_credentials().model_dump_json(indent=2)
        write_file(self.path / CONFIG_FILE, text.encode())

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


def _stands(row: Row, state: TrainState) -> bool:
    if row["step"] == state.step and "eval" in row:
        return not state.eval_due
    return bool(row["step"] <= state.step)


def _as_line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
