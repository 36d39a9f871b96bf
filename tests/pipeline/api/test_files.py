"""Files and jobs in the API's database: what is listed, what is refused, what a full disk does."""

import gzip
import io
import json
import os
import socket
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from specpipe.pipeline.api.database import JobDatabase
from specpipe.pipeline.api.guard import MOST_JSON_BYTES
from specpipe.pipeline.api.queue_worker import RESULTS
from specpipe.stages.text.input.rows import read_rows
from specpipe.stages.text.rejected import Rejections
from tests.full_disk import files_may_hold
from tests.pipeline.api.conftest import TOKEN, add_job
from tests.pipeline.api.test_api import Start


def upload(client: TestClient, data: bytes = b"{}\n") -> Any:
    return client.post(
        "/v1/files", files={"file": ("rows.jsonl", data)}, data={"purpose": "fine-tune"}
    )


def listed(client: TestClient, **query: Any) -> list[str]:
    return [file["id"] for file in client.get("/v1/files", params=query).json()["data"]]


def body(file_id: str, **changes: Any) -> dict[str, Any]:
    method = {"type": "spec-draft"}
    return {"model": "m", "training_file": file_id, "method": method, **changes}


def test_files_are_listed_by_purpose_and_in_either_order(
    client: TestClient, store: JobDatabase
) -> None:
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
    store: JobDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add_job(store, body("f"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    second = add_job(store, body("f"))
    assert second.created_at < first.created_at
    assert store.next_job() == first
    assert [job.id for job in store.list_jobs()] == [second.id, first.id]


def test_an_upload_that_cannot_be_stored_leaves_nothing(
    client: TestClient, store: JobDatabase
) -> None:
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


def test_a_disk_that_fills_while_a_form_is_read_is_the_servers_fault(
    client: TestClient, store: JobDatabase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The parser of forms spools an upload over 1 MiB to a file before the handler is called."""
    spool = tmp_path / "spool"
    spool.mkdir()
    with pytest.MonkeyPatch.context() as patch, files_may_hold(2**16):
        patch.setattr(tempfile, "tempdir", str(spool))
        answer = upload(client, b" " * (2 * 2**20))
    assert answer.status_code == 507
    assert "File too large" in answer.json()["error"]["message"]
    assert "an upload cannot be stored: File too large" in capsys.readouterr().err
    assert list(store.files.iterdir()) == list(spool.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("rows.jsonl", ".jsonl"),
        ("rows.PARQUET", ".parquet"),
        ("of.2026-11.rows.jsonl.gz", ".jsonl.gz"),
        ("rows.jsonl.zst", ".jsonl.zst"),
        ("../../a.jsonl", ".jsonl"),
        ("a./x.jsonl", ".jsonl"),
        ("no suffix", ""),
        (".hidden", ".hidden"),
        ("a." + "x" * 300, ""),
        ("a.*?[", ""),
    ],
)
def test_an_upload_keeps_its_suffixes(
    client: TestClient, store: JobDatabase, name: str, end: str
) -> None:
    answer = client.post(
        "/v1/files", files={"file": (name, b"{}\n")}, data={"purpose": "fine-tune"}
    )
    file_id = answer.json()["id"]
    assert [path.name for path in store.files.iterdir()] == [file_id + end]


def test_uploads_in_parquet_and_gzip_are_read(client: TestClient, store: JobDatabase) -> None:
    rows = [{"input_ids": [n, 1, 2], "loss_mask": [0, 1, 1]} for n in range(3)]
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for name, data in (("a.parquet", parquet.getvalue()), ("a.jsonl.gz", gzip.compress(lines))):
        answer = client.post(
            "/v1/files", files={"file": (name, data)}, data={"purpose": "fine-tune"}
        )
        file = store.file(answer.json()["id"])
        assert file is not None
        rejections = Rejections(0)
        found = [len(row["input_ids"]) for _, row in read_rows([file.path], rejections)]
        assert found == [3, 3, 3]


def test_a_file_is_deleted_or_a_job_needs_it(client: TestClient, store: JobDatabase) -> None:
    """Of a deletion and a job that come at once, one wins, whatever the order."""
    file_ids = [upload(client).json()["id"] for _ in range(40)]
    answers: dict[tuple[str, str], int] = {}
    barrier = threading.Barrier(2)

    def delete() -> None:
        for file_id in file_ids:
            barrier.wait()
            answers[file_id, "delete"] = client.delete(f"/v1/files/{file_id}").status_code

    def create() -> None:
        for file_id in file_ids:
            barrier.wait()
            answer = client.post("/v1/fine_tuning/jobs", json=body(file_id))
            answers[file_id, "create"] = answer.status_code

    threads = [threading.Thread(target=act) for act in (delete, create)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes = {(answers[one, "delete"], answers[one, "create"]) for one in file_ids}
    assert outcomes <= {(200, 400), (409, 200)}
    for file_id in file_ids:
        assert (store.file(file_id) is None) == (answers[file_id, "delete"] == 200)


def test_a_deleted_file_is_no_jobs(store: JobDatabase) -> None:
    """What a client's two calls at once come to, in the store alone."""
    job = add_job(store, body("f"))
    file = store.file(job.body["training_file"])
    assert file is not None
    assert store.delete_file(file) == job.id
    store.update_job(job.id, status="failed")
    assert store.delete_file(file) is None
    assert store.add_job(job.body) is None
    assert not Path(file.path).exists()


def test_many_wrong_fields_are_told_in_few_words(client: TestClient) -> None:
    many = {f"unknown_{number}{'x' * 200}": 1 for number in range(3000)}
    answer = client.post("/v1/fine_tuning/jobs", json=body("f") | many)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.count("Extra inputs are not permitted") == 10
    assert message.endswith("and 2990 more")
    assert len(message) < 2000


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


@pytest.mark.slow
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
