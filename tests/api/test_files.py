"""Files and jobs in the API's database: what is listed, what is refused, what a full disk does."""

import json
import os
import resource
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from specpipe.pipeline.api.guard import MOST_JSON_BYTES
from specpipe.pipeline.api.store import Store
from specpipe.pipeline.api.worker import RESULTS
from tests.api.conftest import TOKEN
from tests.api.test_api import Start


def upload(client: TestClient, data: bytes = b"{}\n") -> Any:
    return client.post(
        "/v1/files", files={"file": ("rows.jsonl", data)}, data={"purpose": "fine-tune"}
    )


def listed(client: TestClient, **query: Any) -> list[str]:
    return [file["id"] for file in client.get("/v1/files", params=query).json()["data"]]


def body(file_id: str, **changes: Any) -> dict[str, Any]:
    method = {"type": "spec-draft"}
    return {"model": "m", "training_file": file_id, "method": method, **changes}


def test_files_are_listed_by_purpose_and_in_either_order(client: TestClient, store: Store) -> None:
    result = store.jobs / "report.html"
    result.write_text("<html>")
    first, second = (upload(client).json()["id"] for _ in range(2))
    of_job = store.add_file(result.name, RESULTS, result)
    # As a worker does that was killed before it could say that its job is done.
    assert store.add_file(result.name, RESULTS, result) == of_job
    assert listed(client) == [of_job, second, first]
    assert listed(client, purpose="fine-tune") == [second, first]
    assert listed(client, purpose=RESULTS) == [of_job]
    assert listed(client, order="asc", limit=2) == [first, second]
    assert listed(client, order="asc", after=first) == [second, of_job]
    assert listed(client, limit=10_000) == listed(client)
    assert client.get("/v1/files", params={"order": "random"}).status_code == 400
    result.unlink()
    gone = client.get(f"/v1/files/{of_job}/content")
    assert gone.status_code == 404
    assert gone.json()["error"]["message"] == "report.html is gone from the server's disk"


def test_what_came_first_runs_first_whatever_the_clock_says(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.add_job(body("f"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    second = store.add_job(body("f"))
    assert second.created_at < first.created_at
    assert store.next_job() == first
    assert [job.id for job in store.list_jobs()] == [second.id, first.id]


@contextmanager
def files_may_hold(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_upload_that_cannot_be_stored_leaves_nothing(client: TestClient, store: Store) -> None:
    with files_may_hold(2**16):
        answer = upload(client, b" " * 2**18)
    assert answer.status_code == 507
    assert "File too large" in answer.json()["error"]["message"]
    with sqlite3.connect(store.folder / "jobs.sqlite") as database:
        database.execute("ALTER TABLE files RENAME TO away")
    database.close()
    assert upload(client).status_code == 507
    assert list(store.files.iterdir()) == []
    answer = client.get("/v1/files")
    assert answer.status_code == 503
    assert "database" in answer.json()["error"]["message"]


def test_only_uploads_may_be_large(client: TestClient) -> None:
    assert upload(client, b" " * (2 * MOST_JSON_BYTES)).status_code == 200
    large = json.dumps(body("f", suffix="x" * MOST_JSON_BYTES))
    for content in (large, iter([large.encode()])):
        answer = client.post("/v1/fine_tuning/jobs", content=content)
        assert answer.status_code == 413
        assert "over 1 MiB" in answer.json()["error"]["message"]


def test_null_is_as_good_as_nothing(client: TestClient) -> None:
    """OpenAI's client sends None as null."""
    file_id = upload(client).json()["id"]
    answer = client.post("/v1/fine_tuning/jobs", json=body(file_id, seed=None, suffix=None))
    assert answer.status_code == 200, answer.text
    assert (answer.json()["seed"], answer.json()["suffix"]) == (0, None)


def test_uploads_come_in_where_they_will_lie(start: Start, tmp_path: Path) -> None:
    """Not in /tmp, which may be small or memory."""
    server = start()
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {4 * 2**20}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + part + b" " * (3 * 2**20))
        for _ in range(600):
            found = [file for file in open_files(server.process.pid) if "(deleted)" in file]
            if found:
                break
            time.sleep(0.1)
    assert [file.startswith(str(tmp_path / "api" / "files")) for file in found] == [True]


def open_files(pid: int) -> list[str]:
    return [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
