"""A job on a tiny random target, and `specpipe run` as a real command."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.dump.conftest import rows, save_target

MakeJob = Callable[..., Path]

EXTRA = """
dump: {backend: hf, shard_tokens: 256}
train: {draft_vocab_size: 64, checkpoint_every: 2, held_out_fraction: 0.2, device: cpu}
"""


class Job:
    """A running `specpipe run`, in a process group of its own."""

    def __init__(self, job: Path, out: Path, *more: str) -> None:
        config = job.with_name("extra.yaml")
        config.write_text(EXTRA)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "specpipe", "run", str(job), "--out", str(out),
             "--config", str(config), "--json", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )  # fmt: skip

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code; None where it is not over in so many seconds."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def result(self) -> tuple[int, dict[str, Any], str]:
        """Exit code, JSON and notes."""
        printed, notes = self.process.communicate()
        return self.process.returncode, json.loads(printed.splitlines()[-1]), notes

    def kill(self) -> None:
        """The command alone: its stages are to end with it."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def terminate(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)


@pytest.fixture(scope="session")
def job_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def make_job(job_target: Path, tmp_path: Path) -> MakeJob:
    """make_job(changes to the body, hyperparameters=..., data=...): the job's JSON file."""

    def make(
        data: Sequence[dict[str, Any]] | None = None,
        hyperparameters: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        training = tmp_path / "training.jsonl"
        text = "".join(json.dumps(row) + "\n" for row in (data or rows(40)))
        training.write_text(text)
        parameters = {
            "batch_size": 8,
            "learning_rate": 0.002,
            "n_epochs": 2,
            "context_length": 64,
            "loss": {"type": "lk_hybrid"},
            "num_decoding_heads": 2,
            **(hyperparameters or {}),
        }
        body = {
            "model": str(job_target),
            "training_file": str(training),
            "method": {"type": "spec-draft", "spec_draft": {"hyperparameters": parameters}},
            "seed": 1,
            **changes,
        }
        path = tmp_path / "job.json"
        path.write_text(json.dumps(body))
        return path

    return make
