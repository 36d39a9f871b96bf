"""The queue goes on, whatever happens to its database and to the processes of its jobs."""

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from specpipe.pipeline.api import queue_worker as worker_module
from specpipe.pipeline.api.database import JobDatabase
from specpipe.pipeline.api.queue_worker import MOST_STOPS, QueueWorker
from tests.dump.conftest import rows
from tests.pipeline.api import conftest as api_conftest
from tests.pipeline.job.conftest import EXTRA
from tests.processes import kill

AddJob = Callable[[], str]


@pytest.fixture
def add_job(store: JobDatabase, api_target: Path, tmp_path: Path) -> AddJob:
    """A job that takes longer than any test waits."""

    def add() -> str:
        file_id, path = store.new_file_path()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(40)))
        store.add_file("training.jsonl", "fine-tune", path, file_id)
        parameters = {"n_epochs": 500, "context_length": 64, "num_decoding_heads": 2}
        body: dict[str, Any] = {
            "model": str(api_target),
            "training_file": file_id,
            "method": {"type": "spec-draft", "spec_draft": {"hyperparameters": parameters}},
        }
        job = store.add_job(body)
        assert job is not None
        return job.id

    return add


@pytest.fixture
def run(
    store: JobDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[QueueWorker]:
    monkeypatch.setattr(worker_module, "_RETRY_SECONDS", 0.05)
    config = tmp_path / "extra.yaml"
    config.write_text(EXTRA)
    made = QueueWorker(store, config)
    made.start()
    yield made
    made.close()


def wait(what: Callable[[], object]) -> None:
    for _ in range(1200):
        if what():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about")


def jobs_processes() -> list[int]:
    """Of `specpipe run`, started by this process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_bytes().split(b"\0")
            if parent == os.getpid() and b"run" in command:
                found.append(int(path.name))
    return found


def end_the_process(number: int) -> None:
    wait(jobs_processes)
    (pid,) = jobs_processes()
    kill(pid, number)
    wait(lambda: pid not in jobs_processes())


def told(store: JobDatabase, job_id: str) -> list[str]:
    return [event.message for event in store.events(job_id)]


def rename(store: JobDatabase, old: str, new: str) -> None:
    database = sqlite3.connect(store.folder / "jobs.sqlite", timeout=30)
    with database:
        database.execute(f"ALTER TABLE {old} RENAME TO {new}")
    database.close()


@pytest.mark.slow
def test_the_queue_outlives_its_database(
    store: JobDatabase, add_job: AddJob, run: QueueWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = add_job()
    wait(lambda: "Stage dump runs" in told(store, job_id))
    rename(store, "jobs", "away")
    notes = ""

    def is_noted() -> bool:
        nonlocal notes
        notes += capsys.readouterr().err
        return "no such table" in notes

    wait(is_noted)
    assert jobs_processes() == []
    rename(store, "away", "jobs")
    wait(lambda: "The job goes on" in told(store, job_id))
    assert len(jobs_processes()) <= 1
    assert store.cancel_job(job_id)
    wait(lambda: store.job(job_id).status == "cancelled")  # type: ignore[union-attr]


def test_a_job_that_others_stop_goes_on(
    store: JobDatabase, add_job: AddJob, run: QueueWorker
) -> None:
    job_id = add_job()
    for number in range(MOST_STOPS):
        end_the_process(signal.SIGKILL if number else signal.SIGTERM)
    wait(lambda: store.job(job_id).status == "failed")  # type: ignore[union-attr]
    assert sum(text.startswith("The job was stopped") for text in told(store, job_id)) == 2
    assert told(store, job_id).count("The job goes on") == 2


def test_a_job_that_was_cancelled_is_not_started(store: JobDatabase, add_job: AddJob) -> None:
    job_id = add_job()
    assert store.cancel_job(job_id)
    assert not store.start_job(job_id)
    assert not store.cancel_job(job_id)
    assert store.next_job() is None
    found = store.job(job_id)
    assert found is not None
    assert found.status == "cancelled"
    assert found.finished_at is not None


@pytest.mark.slow
def test_a_client_learns_nothing_of_the_servers_folders(
    store: JobDatabase, run: QueueWorker
) -> None:
    """A folder that is there and one that is not look alike, and no path is told."""
    told_by_model = {}
    for model in ("/etc", "x/../../etc", "/no-such-folder"):
        job = api_conftest.add_job(store, {"model": model, "method": {"type": "spec-draft"}})
        wait(lambda: not store.next_job())
        found = store.job(job.id)
        assert found is not None
        assert found.error is not None
        told_by_model[model] = found.error["message"].replace(model, "MODEL")
        assert str(store.folder) not in "".join(told(store, job.id))
    assert len(set(told_by_model.values())) == 1
    assert "MODEL" in told_by_model["/etc"]
