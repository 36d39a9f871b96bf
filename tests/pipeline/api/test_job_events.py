"""What clients are told of a job that runs, and what following it costs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from specpipe.pipeline.api.database import JobDatabase, NewEvent
from specpipe.pipeline.api.job_events import JobEvents
from specpipe.pipeline.job.folder import JobFolder
from specpipe.schemas.settings.job import parse_job
from specpipe.stages.storage.store.local_disk import write_file
from tests.pipeline.api.conftest import add_job

BODY = {"model": "m", "training_file": "f", "method": {"type": "spec-draft"}}
Write = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    made = JobFolder(tmp_path / "out")
    with made.locked():
        made.begin(parse_job(BODY), "settings")
    made.train.mkdir()
    return made


@pytest.fixture
def write(folder: JobFolder) -> Write:
    """write(rows...): metrics.jsonl holds these."""

    def make(*rows: dict[str, Any], torn: str = "") -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_file(folder.train / "metrics.jsonl", (text + torn).encode())

    return make


def told(store: JobDatabase, job_id: str) -> list[str]:
    return [event.message for event in store.events(job_id)][::-1]


def test_each_step_and_evaluation_is_told_once(
    store: JobDatabase, folder: JobFolder, write: Write
) -> None:
    job_id = add_job(store, BODY).id
    steps: list[dict[str, Any]] = [{"step": n, "draft_loss": 1.0 / n} for n in (1, 2, 3)]
    evaluation = {"step": 2, "eval": {"draft_loss": 0.25}}
    followed = JobEvents(store, job_id, folder)
    write(*steps[:2], torn='{"step": 2, "ev')
    followed.look()
    write(*steps[:2], evaluation, steps[2])
    followed.look()
    everything = [
        "Step 1, train: loss 1.0000",
        "Step 2, train: loss 0.5000",
        "Step 2, validation: loss 0.2500",
        "Step 3, train: loss 0.3333",
    ]
    assert told(store, job_id) == everything
    # Training goes on from the checkpoint of step 1, also with another server.
    for again in (followed, JobEvents(store, job_id, folder)):
        for rows in (steps[:1], [*steps[:2], evaluation, steps[2]]):
            write(*rows)
            again.look()
    assert told(store, job_id) == everything
    # Cut back and longer than before, all between two looks.
    write(*steps, {"step": 4, "draft_loss": 0.25}, {"step": 5, "draft_loss": 0.125})
    followed.look()
    assert told(store, job_id)[4:] == ["Step 4, train: loss 0.2500", "Step 5, train: loss 0.1250"]


def test_what_was_read_is_not_read_again(
    store: JobDatabase, folder: JobFolder, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = JobEvents(store, add_job(store, BODY).id, folder)
    steps = [{"step": n, "draft_loss": 1.0} for n in range(1, 51)]
    write(*steps[:49])
    followed.look()
    parsed: list[Any] = []
    loads = json.loads

    def counted(text: Any, **options: Any) -> Any:
        parsed.append(text)
        return loads(text, **options)

    monkeypatch.setattr(json, "loads", counted)
    with (folder.train / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(steps[49]) + "\n")
    followed.look()
    assert sum("draft_loss" in str(text) for text in parsed) == 1


def test_events_come_a_page_at_a_time(store: JobDatabase, client: TestClient) -> None:
    job_id, other = add_job(store, BODY).id, add_job(store, BODY).id
    for number in range(5):
        store.add_events(job_id, [NewEvent(str(number)), NewEvent(f"{number}b")])
        store.add_event(other, "of the other job")
    seen: list[str] = []
    after = ""
    for more in (True, True, True, False):
        page = client.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=3{after}").json()
        seen += [event["message"] for event in page["data"]]
        assert page["has_more"] is more
        after = f"&after={page['last_id']}"
    assert seen == [name for number in reversed(range(5)) for name in (f"{number}b", str(number))]
    for wrong in ("ftevent-x", "ftevent-" + "9" * 40, "file-1"):
        page = client.get(f"/v1/fine_tuning/jobs/{job_id}/events?after={wrong}").json()
        assert page["data"] == []
